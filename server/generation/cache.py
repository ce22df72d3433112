"""The keys and values of all running requests, on the device: two tensors [slots, heads, capacity, head_width] a layer.

The graph reads the past from, and writes what is new to, the same memory: only the new tokens are written, nothing is
copied. Slots follow each other in memory, so that a run of them, or a single one, is the same memory with another
pointer: that is what `bind` binds.
"""

import ctypes
import math
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import DTypeLike, NDArray

MEMCPY_DEVICE_TO_DEVICE = 3


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The shape of the cache. `bytes` is what all of it takes."""

    layers: int
    slots: int
    heads: int
    capacity: int  # tokens of a slot
    head_width: int

    @property
    def slot_shape(self) -> tuple[int, int, int]:
        return self.heads, self.capacity, self.head_width

    def bytes(self, element_bytes: int) -> int:
        return 2 * self.layers * self.slots * math.prod(self.slot_shape) * element_bytes


class SlotCache:
    """Owns the memory, hands out views of it to a run, and moves tokens from slot to slot.

    `device` is "cpu" or "cuda". Raises onnxruntime's error if the memory is not there.
    """

    def __init__(self, layout: Layout, *, dtype: DTypeLike, device: str, device_id: int) -> None:
        self.layout = layout
        self.dtype = np.dtype(dtype)
        self.device, self.device_id = device, device_id
        self.bytes = layout.bytes(self.dtype.itemsize)
        # Zeros, because what memory happens to hold, NaN for one, must not leak through masked positions. On the CPU
        # they take no memory until they are written to, and the tensors share it.
        self._arrays: list[NDArray[np.generic]] = []
        self._tensors: dict[str, onnxruntime.OrtValue] = {}
        for name in (f"{kind}.{layer}" for layer in range(layout.layers) for kind in ("key", "value")):
            zeros = np.zeros((layout.slots, *layout.slot_shape), self.dtype)
            if device == "cpu":
                self._arrays.append(zeros)
            self._tensors[name] = onnxruntime.OrtValue.ortvalue_from_numpy(zeros, device, device_id)
        self._slot_bytes = math.prod(layout.slot_shape) * self.dtype.itemsize
        self._cuda = ctypes.CDLL("libcudart.so.13") if device == "cuda" else None  # loaded by the provider already

    def bind(self, binding: onnxruntime.IOBinding, *, first: int, rows: int) -> None:
        """Make the slots [first, first + rows) past and present of the runs of this binding."""
        assert rows >= 1, "an empty batch kills the process; this is a bug"
        assert 0 <= first <= self.layout.slots - rows, "slots that do not exist; this is a bug"
        shape = (rows, *self.layout.slot_shape)
        for name, tensor in self._tensors.items():
            place = self.device, self.device_id, self.dtype, shape, tensor.data_ptr() + first * self._slot_bytes
            binding.bind_input(f"past_{name}", *place)
            binding.bind_output(f"present_{name}", *place)

    def copy(self, *, source: int, target: int, tokens: int) -> None:
        """Copy the first `tokens` tokens of a slot to another, in every layer."""
        if self._cuda is None:
            for array in self._arrays:
                array[target, :, :tokens] = array[source, :, :tokens]
            return
        for tensor in self._tensors.values():
            self._copy_on_device(tensor.data_ptr(), source=source, target=target, tokens=tokens)
        self._check(self._cuda.cudaDeviceSynchronize())

    def _copy_on_device(self, address: int, *, source: int, target: int, tokens: int) -> None:
        assert self._cuda is not None
        token_bytes = self.layout.head_width * self.dtype.itemsize
        pitch = ctypes.c_size_t(self.layout.capacity * token_bytes)  # from one head to the next
        place = [ctypes.c_void_p(address + slot * self._slot_bytes) for slot in (target, source)]
        width, height = ctypes.c_size_t(tokens * token_bytes), ctypes.c_size_t(self.layout.heads)
        self._check(self._cuda.cudaMemcpy2D(place[0], pitch, place[1], pitch, width, height, MEMCPY_DEVICE_TO_DEVICE))

    def _check(self, status: int) -> None:
        if status:
            raise RuntimeError(f"moving keys and values on the device failed with CUDA error {status}")
