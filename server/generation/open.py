"""Opens an engine over a session: the sizes of its cache and its steps, by provider and settings."""

import logging
from collections.abc import Collection
from dataclasses import replace

from server.admission.in_flight import InFlight
from server.admission.queue import AdmissionQueue, Limits
from server.config.settings import ModelSettings
from server.errors import NotEnoughMemory
from server.generation.cache import SlotCache, check_memory, megabytes, usable_bytes
from server.generation.cuda_graphs import decoder_of, layout_of, memory_of
from server.generation.decoder import Decoder
from server.generation.engine import DEFAULT_FORWARD_TOKENS, MIN_SHARED_TOKENS, Engine
from server.observability.observer import Observer
from server.runtime.session import Session

log = logging.getLogger(__name__)

MAX_SLOTS = {"cuda": 128}  # by provider
INITIAL_SLOTS = 8
CHUNK_TOKENS = {"cuda": 512}  # of a prompt, in one run
FORWARD_TOKENS = {"cuda": 1024}  # of whole texts, with padding, in one run between two steps
DEFAULT_MAX_SLOTS, DEFAULT_CHUNK_TOKENS = 32, 64  # of other providers


def open_engine(
    session: Session,
    settings: ModelSettings,
    *,
    name: str,
    context_length: int,
    end_ids: Collection[int],
    device: int = 0,
    memory_limit: int | None = None,
    observer: Observer,
    in_flight: InFlight | None = None,
) -> Engine:
    """An engine over a session. `context_length` is the number of positions that the model knows.

    `memory_limit` is the number of bytes of a GPU that the cache may use. The cache has few slots at first, and grows
    when requests wait for a slot. Raises NotEnoughMemory if the cache does not fit.
    """
    capacity = min(settings.capacity or context_length, context_length)
    try:
        decoder = _open_decoder(session, settings, capacity=capacity, device=device, memory_limit=memory_limit)
    except NotEnoughMemory as error:
        raise NotEnoughMemory(f"{name}: {error} (--set {name}.slots=N, or a smaller {name}.capacity)") from error
    _log_cache_size(name, decoder.cache)
    limits = Limits(
        inputs=settings.max_queue_requests,
        tokens=settings.max_queue_tokens or settings.max_queue_requests * capacity,
    )
    chunk_tokens = settings.max_prefill_tokens or CHUNK_TOKENS.get(session.provider, DEFAULT_CHUNK_TOKENS)
    return Engine(
        decoder,
        admission=AdmissionQueue(name, limits),
        chunk_tokens=max(chunk_tokens, 3),
        max_queue_s=settings.max_queue_seconds,
        forward_tokens=FORWARD_TOKENS.get(session.provider, DEFAULT_FORWARD_TOKENS),
        end_ids=end_ids,
        min_shared_tokens=MIN_SHARED_TOKENS if settings.prefix_cache else capacity,  # no prompt is that long
        observer=observer,
        in_flight=in_flight,
    )


def _open_decoder(
    session: Session, settings: ModelSettings, *, capacity: int, device: int, memory_limit: int | None
) -> Decoder:
    """A decoder over a new cache. A number of slots in the settings must fit; the default is reduced until it fits."""
    max_slots = settings.slots or MAX_SLOTS.get(session.provider, DEFAULT_MAX_SLOTS)
    memory = memory_of(session, device_id=device, limit=memory_limit)
    layout = layout_of(session, slots=max_slots, max_slots=max_slots, capacity=capacity)
    if settings.slots:
        check_memory(layout, memory, slots=max_slots, size=layout.bytes(max_slots))
    max_slots = max(1, min(max_slots, usable_bytes(memory) // layout.bytes(1)))
    layout = replace(layout, slots=min(max_slots, INITIAL_SLOTS), max_slots=max_slots)
    return decoder_of(session, layout, memory)


def _log_cache_size(name: str, cache: SlotCache) -> None:
    layout = cache.layout
    log.info(
        "%s: %d slots of %d tokens, %s each: %s of keys and values at first, at most %s in %d slots",
        name,
        layout.slots,
        layout.capacity,
        megabytes(layout.bytes(1)),
        megabytes(layout.bytes(layout.slots)),
        megabytes(layout.bytes(layout.max_slots)),
        layout.max_slots,
    )
