"""Builds the task of a model: its tokenizer or image decoder, its batcher or engine, and the tasks that use them.

server/tasks/registry.py maps tasks to builders.
"""

import logging
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

from server.admission.in_flight import InFlight
from server.admission.queue import AdmissionQueue, Limits
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.collate import PIXELS_PER_TOKEN
from server.batching.defaults import FREE_TOKENS, MAX_BATCH_TOKENS, shapes_of
from server.batching.scheduler import Budget
from server.batching.warm_up import warm_up
from server.concurrency.stop_signal import StopSignal
from server.config.settings import ModelSettings
from server.generation.golden_check import check_decoding
from server.generation.open import open_engine
from server.generation.replicas import EngineReplicas
from server.generation.request import ListLimits
from server.images.decode_pool import DecodePool
from server.images.golden_check import check_images
from server.images.preprocess import ImageDecoder
from server.observability.observer import Observer
from server.runtime.golden_check import PreprocessingParity
from server.runtime.session import Session
from server.tasks.classify_image import ClassifyImage
from server.tasks.classify_text import ClassifyText
from server.tasks.embed import Embed
from server.tasks.fill_mask import FillMask
from server.tasks.generate import Generate, RawGpt
from server.tasks.tensors import MAX_RESPONSE_LOGITS, RawImage, RawText
from server.text.encode import TokenCounter
from server.text.golden_check import check_golden_texts
from server.text.tokenizer import TextEncoder

log = logging.getLogger(__name__)

TextTask = FillMask | ClassifyText | Embed  # tasks that run tokens in batches
Task = TextTask | ClassifyImage | Generate
TensorTask = RawText | RawImage | RawGpt


class Backend(Protocol):
    """Runs the requests of a model on the event loop, behind a queue."""

    admission: AdmissionQueue
    slots: int  # sequences that can run together; 0 for a batcher

    @property
    def waiting_inputs(self) -> int: ...

    @property
    def waiting_tokens(self) -> int: ...

    @property
    def running_inputs(self) -> int: ...

    @property
    def predicted_wait_s(self) -> float: ...

    async def start(self) -> None: ...

    async def drain(self) -> None: ...

    def abort(self) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LoadContext:
    """The parts from which a task is built."""

    artifact: Artifact
    sessions: Sequence[Session]  # of the same graph, one for each device
    settings: ModelSettings
    memory_limit: int | None  # bytes of a GPU for the cache, without those for the runtime; None: all that are free
    threads: Executor  # for work that would block the event loop
    images: DecodePool
    observer: Observer
    in_flight: InFlight  # counts the requests of the model; its back-ends share it
    stop: StopSignal


@dataclass(frozen=True, kw_only=True)
class BuiltTask:
    """The task and the tensor task of a model, the back-end that both use, and the check of the preprocessing."""

    task: Task
    raw: TensorTask
    counter: TokenCounter | None = None  # of models on text
    backend: Backend
    preprocessing_parity: PreprocessingParity  # of the tokenizer or image decoder


def build_text(task_class: type[TextTask], context: LoadContext) -> BuiltTask:
    """A task on texts that are encoded and run in batches."""
    artifact, encoder = context.artifact, TextEncoder(context.artifact)
    preprocessing_parity = PreprocessingParity(texts=check_golden_texts(encoder, artifact))
    batcher = _batcher(context, max_tokens=artifact.manifest.text.max_length)
    return BuiltTask(
        task=task_class(artifact, batcher, encoder, context.threads),
        raw=RawText(artifact, batcher),
        counter=_counter(context, encoder),
        backend=batcher,
        preprocessing_parity=preprocessing_parity,
    )


def build_image(context: LoadContext) -> BuiltTask:
    """Classification of images that are decoded and run in batches."""
    artifact, image = context.artifact, context.artifact.manifest.image
    settings = context.settings
    decoder = ImageDecoder(image, max_pixels=settings.max_image_pixels, reducing_gap=settings.reducing_gap)
    parity = check_images(artifact, ImageDecoder(image))  # golden images may be larger than those of requests
    batcher = _batcher(context, max_tokens=max(1, image.height * image.width // PIXELS_PER_TOKEN))
    return BuiltTask(
        task=ClassifyImage(artifact, batcher, decoder, pool=context.images, threads=context.threads),
        raw=RawImage(artifact, batcher),
        backend=batcher,
        preprocessing_parity=parity,
    )


def build_generate(context: LoadContext) -> BuiltTask:
    """Generation by one engine for each device."""
    artifact, encoder = context.artifact, TextEncoder(context.artifact)
    preprocessing_parity = PreprocessingParity(texts=check_golden_texts(encoder, artifact))
    engines = []
    for session in context.sessions:
        context.stop.check()
        check_decoding(session, artifact, device=session.device)
        engines.append(
            open_engine(
                session,
                context.settings,
                name=artifact.name,
                context_length=artifact.manifest.text.max_length,
                end_ids=artifact.manifest.text.end_ids,
                device=session.device,
                memory_limit=context.memory_limit,
                observer=context.observer,
                in_flight=context.in_flight,
            )
        )
    engine = engines[0] if len(engines) == 1 else EngineReplicas(engines)
    limits, interval = _list_limits(context.settings), context.settings.stream_interval
    return BuiltTask(
        task=Generate(engine, encoder, context.threads, limits=limits, stream_interval=interval),
        raw=RawGpt(engine),
        counter=_counter(context, encoder),
        backend=engine,
        preprocessing_parity=preprocessing_parity,
    )


def _list_limits(settings: ModelSettings) -> ListLimits:
    return ListLimits(
        stop_strings=settings.max_stop_strings,
        stop_characters=settings.max_stop_characters,
        logit_bias=settings.max_logit_bias,
        stop_token_ids=settings.max_stop_token_ids,
    )


def _counter(context: LoadContext, encoder: TextEncoder) -> TokenCounter:
    max_texts = context.settings.max_queue_requests
    return TokenCounter(encoder, context.threads, name=context.artifact.name, max_texts=max_texts)


def _batcher(context: LoadContext, *, max_tokens: int) -> Batcher:
    """A batcher for inputs of up to `max_tokens` tokens. A batch can hold the longest, unless a setting forbids it."""
    settings, artifact = context.settings, context.artifact
    budget = _budget(context, max_tokens)
    for session in context.sessions:
        warmed = warm_up(session, artifact, budget, stop=context.stop)
        if warmed.of:
            log.info("%s: %d of %d shapes warmed up in %.1f s", artifact.name, warmed.shapes, warmed.of, warmed.seconds)
    return Batcher(
        context.sessions,
        name=artifact.name,
        budget=budget,
        limits=Limits(
            inputs=settings.max_queue_requests,
            tokens=settings.max_queue_tokens or settings.max_queue_requests * max_tokens,
            request_inputs=settings.max_request_inputs,
            request_tokens=settings.max_request_tokens,
        ),
        max_delay_s=settings.max_delay_seconds,
        max_queue_s=settings.max_queue_seconds,
        observer=context.observer,
        in_flight=context.in_flight,
    )


def _budget(context: LoadContext, max_tokens: int) -> Budget:
    settings, text = context.settings, context.artifact.manifest.text
    provider = context.sessions[0].provider
    tokens = settings.max_batch_tokens or max(MAX_BATCH_TOKENS[provider], max_tokens)
    logit_positions = max(MAX_RESPONSE_LOGITS // max(1, text.vocabulary), max_tokens)
    longest = min(text.max_length, tokens) or None
    return Budget(
        items=settings.max_batch_size,
        tokens=tokens,
        logit_positions=logit_positions,
        padding=settings.max_batch_padding,
        free_tokens=FREE_TOKENS[provider],
        shapes=shapes_of(
            provider, batch_size=settings.max_batch_size, longest=longest, logit_positions=logit_positions
        ),
    )
