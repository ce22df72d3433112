"""Decode steps of GPT-2: ours, the time to read weights and cache, and those of torch with a static cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from server.artifact import read_artifact
from server.config.settings import Settings
from server.generation.device_memory import DeviceMemory
from server.generation.open import make_decoder, make_layout, make_memory
from server.runtime.open import open_session
from server.runtime.providers import find_providers
from tests.gpu.compiling import compiled
from tests.gpu.rows import Row, timed

COPIED_BYTES = {"cuda": 1 << 30, "cpu": 1 << 26}


def decoding(
    artifacts: Path, checkpoint: Path, provider: str, batches: list[int], runs: int, *, tokens: int
) -> Iterator[Row]:
    """Steps of sequences of `tokens` tokens. The batch sizes must be powers of two, for which steps are captured."""
    settings = Settings(provider=provider)
    artifact, choice = read_artifact(artifacts / "gpt2" / "1"), find_providers(settings).choices[0]
    session = open_session(artifact, choice, settings, enable_cuda_graph=True)
    slots, context_length = max(batches), artifact.manifest.text.max_length
    memory = make_memory(session)
    layout = make_layout(session, slots=slots, max_slots=slots, capacity=context_length)
    decoder = make_decoder(session, layout, memory)
    speed = bytes_per_second(memory)
    weights = artifact.path(artifact.graph(choice.target).file).stat().st_size
    for batch in batches:
        ids, lengths = np.ones(batch, np.int64), np.full(batch, tokens, np.int32)
        seconds = timed(lambda ids=ids, lengths=lengths: decoder.decode(ids, lengths), runs)
        yield step("decode step", batch, seconds)
        floor = (weights + layout.bytes(batch) * tokens / context_length) / speed
        yield step(f"floor of a decode step at {speed / 1e9:,.0f} GB/s", batch, floor)
    for batch in batches:
        how, seconds = torch_step(checkpoint, provider, batch, runs, tokens)
        yield step(f"decode step of torch, {how}, static cache", batch, seconds)


def step(what: str, batch: int, seconds: float) -> Row:
    return Row("gpt2", what, batch, seconds * 1e3, batch / seconds)


def bytes_per_second(memory: DeviceMemory) -> float:
    """The rate of reading and writing when memory of the device is copied."""
    size, pitch = COPIED_BYTES[memory.device], 1 << 20
    source, target = memory.allocate(size, size), memory.allocate(size, size)

    def copy() -> None:
        memory.copy(source=source, target=target, pitch=pitch, width=pitch, height=size // pitch)
        memory.synchronize()

    seconds = timed(copy, 5)
    memory.free(source)
    memory.free(target)
    return 2 * size / seconds


@torch.inference_mode()
def torch_step(checkpoint: Path, provider: str, batch: int, runs: int, tokens: int) -> tuple[str, float]:
    """Whether torch compiled the step, and its seconds, in the precision of ours: fp16 on CUDA, fp32 on a CPU."""
    dtype = torch.float16 if provider == "cuda" else torch.float32
    model = transformers.GPT2LMHeadModel.from_pretrained(checkpoint, dtype=dtype).eval().to(provider)
    cache = transformers.StaticCache(config=model.config, max_cache_len=model.config.n_positions)
    past = torch.arange(tokens - 1, device=provider)
    model(past.expand(batch, -1) % 5, past_key_values=cache, cache_position=past, use_cache=True)
    ids, position = torch.ones(batch, 1, dtype=torch.long, device=provider), past[-1:] + 1

    def run(step_model: Any) -> None:
        logits = step_model(ids, past_key_values=cache, cache_position=position, use_cache=True).logits
        logits[:, -1].argmax(-1).tolist()  # includes the next token of each row, as ours

    how, step_model = compiled(model, provider, run)
    return how, timed(lambda: run(step_model), runs)
