"""The keys and values of all running sequences, on the device.

Each layer has two tensors (slots, heads, capacity, head_width). The graph reads the past from the same memory to which
it writes the new keys and values, so a run writes the new tokens and copies nothing. The slots are contiguous: `bind`
passes a range of slots to a run as an address and a shape. The cache has few slots at first, and grows when more are
needed.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike

from server.errors import NotEnoughMemory
from server.generation.device_memory import DeviceMemory

RUNTIME_SHARE = 0.1  # of the available memory, for what the runtime allocates besides the cache


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of the cache. It has `slots` slots at first, and grows to at most `max_slots`."""

    layers: int
    slots: int
    max_slots: int
    heads: int
    capacity: int  # of a slot, in tokens
    head_width: int
    dtype: DTypeLike

    @property
    def slot_shape(self) -> tuple[int, int, int]:
        return self.heads, self.capacity, self.head_width

    @property
    def slot_bytes(self) -> int:
        """The size of one slot in one tensor."""
        return math.prod(self.slot_shape) * np.dtype(self.dtype).itemsize

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(f"{kind}.{layer}" for layer in range(self.layers) for kind in ("key", "value"))

    def bytes(self, slots: int) -> int:
        """The size of `slots` slots in all tensors."""
        return len(self.tensors) * slots * self.slot_bytes


class SlotCache:
    """Owns the memory of the slots, binds slots to runs, and copies tokens from slot to slot.

    The memory is zero at first, because a NaN in it would spread through masked positions. Raises NotEnoughMemory with
    the number of slots that would fit.
    """

    def __init__(self, layout: Layout, memory: DeviceMemory) -> None:
        self.layout = layout
        self.memory = memory
        self.slots = layout.slots
        self._addresses: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        check_memory(layout, memory, slots=layout.slots, size=layout.bytes(layout.slots))
        for name in layout.tensors:
            size = layout.slots * layout.slot_bytes
            self._addresses[name] = memory.allocate(size, layout.max_slots * layout.slot_bytes)
            self._sizes[name] = size

    def grow(self, slots: int) -> None:
        """Add slots, up to `slots`. The present slots keep their contents, but their memory may move.

        Raises NotEnoughMemory; then the cache has as many slots as before.
        """
        self.check_growth(slots)
        larger = slots * self.layout.slot_bytes
        for name in self.layout.tensors:  # in turn, so that only one tensor exists twice for a moment
            if self._sizes[name] < larger:
                self._addresses[name] = self.memory.grow(self._addresses[name], self._sizes[name], larger)
                self._sizes[name] = larger
        self.slots = slots

    def check_growth(self, slots: int) -> None:
        """Raise NotEnoughMemory if the cache cannot grow to `slots` slots; then nothing has moved."""
        assert self.slots < slots <= self.layout.max_slots, "a number of slots outside the layout; this is a bug"
        size = self.layout.bytes(slots) - self.layout.bytes(self.slots) + slots * self.layout.slot_bytes
        check_memory(self.layout, self.memory, slots=slots, size=size)

    def bind(self, binding: onnxruntime.IOBinding, *, first: int, count: int) -> None:
        """Bind the slots [first, first + count) as the past and present keys and values of a run."""
        assert count >= 1, "an empty batch kills the process; this is a bug"
        assert 0 <= first <= self.slots - count, "slots that do not exist; this is a bug"
        shape, offset = (count, *self.layout.slot_shape), first * self.layout.slot_bytes
        for name, address in self._addresses.items():
            tensor = self.memory.device, self.memory.device_id, self.layout.dtype, shape, address + offset
            binding.bind_input(f"past_{name}", *tensor)
            binding.bind_output(f"present_{name}", *tensor)

    def copy(self, *, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of a slot to another, in every layer."""
        layout, slot_bytes = self.layout, self.layout.slot_bytes
        pitch = slot_bytes // layout.heads  # bytes from one head to the next
        rows = {"pitch": pitch, "width": tokens * pitch // layout.capacity, "height": layout.heads}
        for address in self._addresses.values():
            self.memory.copy(source=address + source * slot_bytes, target=address + target * slot_bytes, **rows)
        self.memory.synchronize()


def check_memory(layout: Layout, memory: DeviceMemory, *, slots: int, size: int) -> None:
    """Raise NotEnoughMemory if `size` more bytes, which a cache of `slots` slots needs, are not available."""
    usable = usable_bytes(memory)
    if size > usable:
        each = layout.bytes(1)
        raise NotEnoughMemory(
            f"found {slots} slots of {layout.capacity} tokens, {megabytes(each)} each, expected at most "
            f"{(usable + slots * each - size) // each}: there is room for {megabytes(usable)} more"
        )


def usable_bytes(memory: DeviceMemory) -> int:
    """The number of bytes that a cache may allocate."""
    return max(0, int(memory.available() * (1 - RUNTIME_SHARE)))


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
