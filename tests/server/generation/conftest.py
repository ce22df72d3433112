"""A tiny GPT with random weights, exported with the export command, and the same model in transformers."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
import transformers

from server.admission.queue import AdmissionQueue, Limits
from server.artifact import read_artifact
from server.config.settings import Settings
from server.generation.cache import SlotCache
from server.generation.decoder import Decoder
from server.generation.device_memory import HostMemory
from server.generation.engine import Engine
from server.generation.open import make_layout
from server.observability.observer import NoOpObserver
from server.runtime.open import open_session
from server.runtime.providers import ProviderChoice

SETTINGS = Settings(provider="cpu", threads=1)


@pytest.fixture(scope="session")
def artifact(exported):
    return read_artifact(exported("tiny-gpt"))


@pytest.fixture(scope="session")
def session(artifact):
    return open_session(artifact, ProviderChoice("cpu"), SETTINGS)


@pytest.fixture(scope="session")
def reference(checkpoints):
    """The same model in transformers."""
    torch.set_num_threads(1)  # the model is too small for more
    return transformers.GPT2LMHeadModel.from_pretrained(checkpoints["tiny-gpt"]).eval()


@pytest.fixture(scope="session")
def context_length(artifact) -> int:
    return artifact.manifest.text.max_length


@pytest.fixture(scope="session")
def vocabulary(artifact) -> int:
    return artifact.manifest.text.vocabulary


@pytest.fixture
async def engine_of(session, context_length):
    """Makes engines, and drains them after the test."""
    engines = []

    async def make(*, slots=8, max_slots=0, chunk_tokens=8, waiting=100, decoder=Decoder, **options) -> Engine:
        layout = make_layout(session, slots=slots, max_slots=max_slots or slots, capacity=context_length)
        cache = SlotCache(layout, options.pop("memory", None) or HostMemory())
        admission = AdmissionQueue("gpt", Limits(inputs=waiting, tokens=100_000))
        options = {"observer": NoOpObserver(), **options}
        engine = Engine(decoder(session, cache), admission=admission, chunk_tokens=chunk_tokens, **options)
        await engine.start()
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        await engine.drain()


@pytest.fixture
def threads():
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def prompts(vocabulary):
    """Makes random prompts of random lengths, without the end token 0."""
    random = np.random.default_rng(0)

    def make(count, *, longest=40):
        return [random.integers(1, vocabulary, random.integers(1, longest + 1)) for _ in range(count)]

    return make
