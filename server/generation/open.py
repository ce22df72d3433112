"""Opens an engine over a session. The decoder, the cache and the sizes of steps depend on provider and settings."""

import logging
from collections.abc import Collection
from dataclasses import replace

from server.admission.in_flight import InFlight
from server.admission.queue import AdmissionQueue, Limits
from server.config.settings import ModelSettings
from server.errors import NotEnoughMemory
from server.generation.cache import Layout, SlotCache, check_memory, megabytes, usable_bytes
from server.generation.cuda_graphs import CapturingDecoder
from server.generation.decoder import Decoder
from server.generation.device_memory import CudaMemory, DeviceMemory, HostMemory
from server.generation.engine import DEFAULT_FORWARD_TOKENS, MIN_SHARED_TOKENS, Engine
from server.observability.observer import Observer
from server.runtime.session import Session

log = logging.getLogger(__name__)

DECODERS = {"cuda": CapturingDecoder}  # by provider
MAX_SLOTS = {"cuda": 128}
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
        request_inputs=settings.max_request_inputs,
        request_tokens=settings.max_request_tokens,
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
    memory = make_memory(session, device_id=device, limit=memory_limit)
    layout = make_layout(session, slots=max_slots, max_slots=max_slots, capacity=capacity)
    if settings.slots:
        check_memory(layout, memory, slots=max_slots, size=layout.bytes(max_slots))
    max_slots = max(1, min(max_slots, usable_bytes(memory) // layout.bytes(1)))
    layout = replace(layout, slots=min(max_slots, INITIAL_SLOTS), max_slots=max_slots)
    return make_decoder(session, layout, memory)


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


def make_decoder(session: Session, layout: Layout, memory: DeviceMemory) -> Decoder:
    """A decoder over a new cache. Raises NotEnoughMemory."""
    return DECODERS.get(session.provider, Decoder)(session, SlotCache(layout, memory))


def make_memory(session: Session, *, device_id: int = 0, limit: int | None = None) -> DeviceMemory:
    """The memory of the device on which the session runs. `limit` is the number of bytes that may be used on a GPU."""
    return CudaMemory(device_id, limit=limit) if session.provider == "cuda" else HostMemory()


def make_layout(session: Session, *, slots: int, max_slots: int, capacity: int) -> Layout:
    """The layout of a cache for the graph of a session, with `capacity` tokens in each slot."""
    keys = [name for name in session.input_names if name.startswith("past_key.")]
    _, heads, _, head_width = session.tensor_shapes[keys[0]]
    return Layout(
        layers=len(keys),
        slots=slots,
        max_slots=max_slots,
        heads=heads,
        capacity=capacity,
        head_width=head_width,
        dtype=session.input_types[keys[0]],
    )
