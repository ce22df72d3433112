"""The keys and values of all running requests, on the device: two tensors [slots, heads, capacity, head_width] a layer.

The graph reads the past from, and writes what is new to, the same memory: only the new tokens are written, nothing is
copied. Slots follow each other in memory, so that a run of them, or a single one, is the same memory with another
pointer: that is what `bind` binds. There are few slots at first, and more when they are needed.
"""

import math
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike

from server.errors import NotEnoughMemory
from server.generation.device_memory import Memory

SPARE = 0.1  # of what is free: for what the runtime needs beside the cache


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of the cache: `slots` at first, `max_slots` at last."""

    layers: int
    slots: int
    max_slots: int
    heads: int
    capacity: int  # tokens of a slot
    head_width: int
    dtype: DTypeLike

    @property
    def slot_shape(self) -> tuple[int, int, int]:
        return self.heads, self.capacity, self.head_width

    @property
    def slot_bytes(self) -> int:
        """Of one slot in one tensor."""
        return math.prod(self.slot_shape) * np.dtype(self.dtype).itemsize

    @property
    def tensors(self) -> tuple[str, ...]:
        return tuple(f"{kind}.{layer}" for layer in range(self.layers) for kind in ("key", "value"))

    def bytes(self, slots: int) -> int:
        return len(self.tensors) * slots * self.slot_bytes


class SlotCache:
    """Owns the memory, hands out views of it to a run, and moves tokens from slot to slot. Zero at first, because what
    memory happens to hold, NaN for one, must not leak through masked positions.

    Raises NotEnoughMemory with the number of slots that would fit.
    """

    def __init__(self, layout: Layout, memory: Memory) -> None:
        self.layout = layout
        self.memory = memory
        self.slots = layout.slots
        self._addresses: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        check_room(layout, memory, slots=layout.slots, more=layout.bytes(layout.slots))
        for name in layout.tensors:
            size = layout.slots * layout.slot_bytes
            self._addresses[name] = memory.take(size, layout.max_slots * layout.slot_bytes)
            self._sizes[name] = size

    def grow(self, slots: int) -> None:
        """Have more slots; those that are there keep what they hold, but their memory may move.

        Raises NotEnoughMemory, and has as many as before.
        """
        self.check_growth(slots)
        larger = slots * self.layout.slot_bytes
        for name in self.layout.tensors:  # one after the other: of one tensor only there are two for a moment
            if self._sizes[name] < larger:
                self._addresses[name] = self.memory.grow(self._addresses[name], self._sizes[name], larger)
                self._sizes[name] = larger
        self.slots = slots

    def check_growth(self, slots: int) -> None:
        """Raise NotEnoughMemory if there is no room for so many slots: then nothing has moved."""
        assert self.slots < slots <= self.layout.max_slots, "a number of slots that was not agreed; this is a bug"
        more = self.layout.bytes(slots) - self.layout.bytes(self.slots) + slots * self.layout.slot_bytes
        check_room(self.layout, self.memory, slots=slots, more=more)

    def bind(self, binding: onnxruntime.IOBinding, *, first: int, rows: int) -> None:
        """Make the slots [first, first + rows) past and present of the runs of this binding."""
        assert rows >= 1, "an empty batch kills the process; this is a bug"
        assert 0 <= first <= self.slots - rows, "slots that do not exist; this is a bug"
        shape, before = (rows, *self.layout.slot_shape), first * self.layout.slot_bytes
        for name, address in self._addresses.items():
            place = self.memory.device, self.memory.device_id, self.layout.dtype, shape, address + before
            binding.bind_input(f"past_{name}", *place)
            binding.bind_output(f"present_{name}", *place)

    def copy(self, *, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of a slot to another, in every layer."""
        layout, slot_bytes = self.layout, self.layout.slot_bytes
        pitch = slot_bytes // layout.heads  # from one head to the next
        rows = {"pitch": pitch, "width": tokens * pitch // layout.capacity, "height": layout.heads}
        for address in self._addresses.values():
            self.memory.copy(source=address + source * slot_bytes, target=address + target * slot_bytes, **rows)
        self.memory.wait()


def check_room(layout: Layout, memory: Memory, *, slots: int, more: int) -> None:
    """Raise NotEnoughMemory if so many bytes more, for so many slots, are not there."""
    room = room_in(memory)
    if more > room:
        each = layout.bytes(1)
        raise NotEnoughMemory(
            f"found {slots} slots of {layout.capacity} tokens, {megabytes(each)} each, expected at most "
            f"{(room + slots * each - more) // each}: there is room for {megabytes(room)} more"
        )


def room_in(memory: Memory) -> int:
    """Bytes that a cache may take."""
    return max(0, int(memory.available() * (1 - SPARE)))


def megabytes(size: float) -> str:
    return f"{size / 1e6:,.1f} MB"
