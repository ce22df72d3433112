"""One version of one model, ready to answer: a session that was checked, and its task and tensor door over it.

The one table of tasks is here. A task is made from what `LoadContext` has; it may bring parts to start and to drain.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from server.admission.in_flight import InFlight
from server.admission.queue import AdmissionQueue, Limits
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.collate import PIXELS_PER_TOKEN
from server.batching.scheduler import Budget
from server.batching.tuning import FREE_TOKENS, MAX_BATCH_TOKENS, shapes_of
from server.batching.warm_up import warm_up
from server.concurrency.stop_signal import StopSignal
from server.config.settings import ModelSettings, Settings
from server.errors import BadArtifact
from server.generation.engine import open_engine
from server.generation.golden_check import check_decoding
from server.generation.replicas import EngineReplicas
from server.images.decode_pool import DecodePool
from server.images.golden_check import check_images
from server.images.preprocess import ImageDecoder
from server.observability.observer import Observer
from server.runtime.golden_check import GoldenInputs, Measured
from server.runtime.providers import ProviderChoice
from server.runtime.session import Session, bytes_beside
from server.runtime.sessions import open_sessions
from server.tasks.classify_image import ClassifyImage
from server.tasks.classify_text import ClassifyText
from server.tasks.embed import Embed
from server.tasks.fill_mask import FillMask
from server.tasks.generate import Generate, RawGpt
from server.tasks.tensors import MAX_LOGITS, RawImage, RawText
from server.text.encode import TokenCounter
from server.text.golden_check import check_golden_texts
from server.text.tokenizer import TextEncoder

log = logging.getLogger(__name__)


# What answers texts once they are tokens: fill-mask, classify-text, embed.
TextTask = Callable[[Artifact, Batcher, TextEncoder, Executor], Any]


class Backend(Protocol):
    """Something of a model that lives on the event loop, with a queue before it."""

    gate: AdmissionQueue
    slots: int  # continuations that can run together; 0 where nothing is generated

    @property
    def waiting_rows(self) -> int: ...

    @property
    def waiting_tokens(self) -> int: ...

    @property
    def running_rows(self) -> int: ...

    async def start(self) -> None: ...

    async def drain(self) -> None: ...

    def abort(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LoadContext:
    """All that a task can be made from."""

    artifact: Artifact
    sessions: Sequence[Session]  # over the same graph, one for each device
    settings: ModelSettings
    memory_limit: int | None  # bytes of a GPU for what the runtime does not take; None: all that is free
    prepare: Executor  # for work that must not hold up the event loop
    images: DecodePool  # for images
    observer: Observer
    stop: StopSignal

    @property
    def session(self) -> Session:
        """Any of them."""
        return self.sessions[0]


@dataclass(frozen=True, kw_only=True)
class Handlers:
    """What a model answers with. Which calls they take is the task's (server/tasks/)."""

    task: Any
    raw: Any
    counter: TokenCounter | None = None  # of models on text
    backends: tuple[Backend, ...] = ()
    golden_inputs: GoldenInputs = GoldenInputs()  # what its tokenizer or image decoder was checked with


@dataclass(frozen=True, kw_only=True)
class Model:
    """One version of one model. `provider` and `precision` are what really computes."""

    name: str
    version: str
    artifact: Artifact
    session: Session  # any of them, if there are several devices
    measured: Measured  # in the session that is farthest from PyTorch
    handlers: Handlers = field(repr=False)
    prepare: Executor = field(repr=False)  # for work that must not hold up the event loop
    reading: InFlight = field(repr=False)  # requests that were given this model, and have yet to come to a door

    @property
    def task(self) -> Any:
        return self.handlers.task

    @property
    def raw(self) -> Any:
        return self.handlers.raw

    @property
    def counter(self) -> TokenCounter | None:
        return self.handlers.counter

    @property
    def golden_inputs(self) -> GoldenInputs:
        return self.handlers.golden_inputs

    @property
    def limits(self) -> Limits:
        """Of what may wait, and so of one request."""
        return self.handlers.backends[0].gate.limits

    @property
    def provider(self) -> str:
        return self.session.provider

    @property
    def precision(self) -> str:
        return self.session.precision

    async def start(self) -> None:
        for backend in self.handlers.backends:
            await backend.start()

    async def drain(self) -> None:
        """Answer who is in, let in nobody any more."""
        await self.reading.wait_idle()
        await asyncio.gather(*(backend.drain() for backend in self.handlers.backends))

    def abort(self) -> None:
        """End what is under way: generation with what it has, everything else with NotReady."""
        for backend in self.handlers.backends:
            backend.abort()


def load_model(
    artifact: Artifact,
    choice: ProviderChoice,
    settings: Settings,
    *,
    prepare: Executor,
    images: DecodePool,
    observer: Observer,
    stop: StopSignal,
) -> Model:
    """Open sessions, check them with the golden inputs, make the doors. Blocks.

    BadArtifact, ProviderUnavailable or NotEnoughMemory; NotReady after a stop; and what the runtime raises.
    """
    stop.check()
    task = artifact.manifest.task
    if task not in TASKS:
        raise BadArtifact(f"{artifact.directory}: found task {task!r}, expected one of {', '.join(TASKS)}")
    checked = open_sessions(artifact, choice, settings, stop=stop)
    sessions = [session for session, _ in checked]
    session, measured = max(checked, key=lambda pair: pair[1].error)
    log.info(
        "%s version %s: %s on %s in %s, %.2g standard deviations from PyTorch (%s; at most %g)",
        artifact.name,
        artifact.version,
        task,
        session.provider,
        session.precision,
        measured.error,
        measured.measure,
        measured.tolerance,
    )
    context = LoadContext(
        artifact=artifact,
        sessions=sessions,
        settings=settings.of(artifact.name),
        memory_limit=_memory_limit(artifact, session, settings),
        prepare=prepare,
        images=images,
        observer=observer,
        stop=stop,
    )
    return Model(
        name=artifact.name,
        version=artifact.version,
        artifact=artifact,
        session=session,
        measured=measured,
        handlers=TASKS[task](context),
        prepare=prepare,
        reading=InFlight(f"{artifact.name} is being unloaded"),
    )


def _memory_limit(artifact: Artifact, session: Session, settings: Settings) -> int | None:
    limited = settings.gpu_memory_mb and session.provider == "cuda"
    return bytes_beside(artifact, settings) if limited else None


# ---- the tasks


def _text(make: TextTask, context: LoadContext) -> Handlers:
    encoder = TextEncoder(context.artifact)
    golden = GoldenInputs(texts=check_golden_texts(encoder, context.artifact))
    batcher = _text_batcher(context)
    task = make(context.artifact, batcher, encoder, context.prepare)
    raw = RawText(context.artifact, batcher)
    return Handlers(task=task, raw=raw, counter=_counter(context, encoder), backends=(batcher,), golden_inputs=golden)


def _classify_image(context: LoadContext) -> Handlers:
    image = context.artifact.manifest.image
    decoder = ImageDecoder(image)
    golden_inputs = check_images(context.artifact, decoder)
    batcher = _batcher(context, tokens_of_a_row=max(1, image.height * image.width // PIXELS_PER_TOKEN))
    task = ClassifyImage(context.artifact, batcher, decoder, pool=context.images, prepare=context.prepare)
    raw = RawImage(context.artifact, batcher)
    return Handlers(task=task, raw=raw, backends=(batcher,), golden_inputs=golden_inputs)


def _generate(context: LoadContext) -> Handlers:
    artifact, text = context.artifact, context.artifact.manifest.text
    encoder = TextEncoder(artifact)
    golden = GoldenInputs(texts=check_golden_texts(encoder, artifact))
    engines = []
    for session in context.sessions:
        context.stop.check()
        check_decoding(session, artifact, device=session.device)
        engines.append(
            open_engine(
                session,
                context.settings,
                name=artifact.name,
                context=text.max_length,
                end_ids=text.end_ids,
                device=session.device,
                memory_limit=context.memory_limit,
                observer=context.observer,
            )
        )
    engine = engines[0] if len(engines) == 1 else EngineReplicas(engines)
    task, counter = Generate(engine, encoder, context.prepare), _counter(context, encoder)
    return Handlers(task=task, raw=RawGpt(engine), counter=counter, backends=(engine,), golden_inputs=golden)


def _counter(context: LoadContext, encoder: TextEncoder) -> TokenCounter:
    most = context.settings.max_queue_requests
    return TokenCounter(encoder, context.prepare, name=context.artifact.name, most=most)


def _text_batcher(context: LoadContext) -> Batcher:
    return _batcher(context, tokens_of_a_row=context.artifact.manifest.text.max_length)


def _batcher(context: LoadContext, *, tokens_of_a_row: int) -> Batcher:
    """`tokens_of_a_row` is what the longest input costs: it fits, unless a setting says that it should not."""
    settings, artifact = context.settings, context.artifact
    budget = _budget(context, tokens_of_a_row)
    for session in context.sessions:
        warmed = warm_up(session, artifact, budget, stop=context.stop)
        if warmed.of:
            log.info("%s: %d of %d shapes warmed up in %.1f s", artifact.name, warmed.shapes, warmed.of, warmed.seconds)
    return Batcher(
        context.sessions,
        name=artifact.name,
        budget=budget,
        limits=Limits(
            requests=settings.max_queue_requests,
            tokens=settings.max_queue_tokens or settings.max_queue_requests * tokens_of_a_row,
        ),
        max_delay_s=settings.max_delay_seconds,
        observer=context.observer,
    )


def _budget(context: LoadContext, tokens_of_a_row: int) -> Budget:
    settings, provider, text = context.settings, context.session.provider, context.artifact.manifest.text
    tokens = settings.max_batch_tokens or max(MAX_BATCH_TOKENS[provider], tokens_of_a_row)
    logit_positions = max(MAX_LOGITS // max(1, text.vocabulary), tokens_of_a_row)
    longest = min(text.max_length, tokens) or None
    return Budget(
        rows=settings.max_batch_size,
        tokens=tokens,
        logit_positions=logit_positions,
        padding=settings.max_batch_padding,
        free_tokens=FREE_TOKENS[provider],
        shapes=shapes_of(provider, rows=settings.max_batch_size, longest=longest, logit_positions=logit_positions),
    )


TASKS: dict[str, Callable[[LoadContext], Handlers]] = {
    "fill-mask": partial(_text, FillMask),
    "classify-text": partial(_text, ClassifyText),
    "embed": partial(_text, Embed),
    "classify-image": _classify_image,
    "generate": _generate,
}
