"""Memory of the device on which the model runs, by address: allocated, copied, read and freed. Knows nothing of slots.

`HostMemory` and `CudaMemory` implement `DeviceMemory`. Both raise NotEnoughMemory.
"""

import ctypes
import mmap
import weakref
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import NotEnoughMemory
from server.host.memory import available_bytes
from server.runtime.capture_lock import cuda_read_lock

Bytes = NDArray[np.uint8]
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
TO_HOST, ON_DEVICE = 2, 3  # kinds of cudaMemcpy


class DeviceMemory(Protocol):
    """Memory of one device; `device` and `device_id` are ONNX Runtime's names for it. Not thread-safe."""

    device: str
    device_id: int

    def available(self) -> int:
        """The number of bytes that can still be allocated."""

    def allocate(self, size: int, max_size: int) -> int:
        """The address of `size` new bytes, all zero, which can grow to `max_size`. Raises NotEnoughMemory."""

    def grow(self, address: int, size: int, new_size: int) -> int:
        """Grow a block; returns its address, which may change. The new bytes are zero. Raises NotEnoughMemory."""

    def free(self, address: int) -> None:
        """Free a block."""

    def copy(self, *, source: int, target: int, pitch: int, width: int, height: int) -> None:
        """Copy the first `width` bytes of `height` rows, `pitch` bytes apart. Complete after `synchronize`."""

    def synchronize(self) -> None:
        """Wait until all copies are complete."""

    def read(self, address: int, size: int) -> Bytes:
        """The `size` bytes at an address. They may change with the next run."""


class HostMemory:
    """Memory of this process. `allocate` reserves the maximum size; the system adds pages when they are written.

    Huge pages are off: a prompt writes a little memory of each head, and zeroing 2 MB for each of these delayed the
    first request in a slot of GPT-2 by 0.1 to 0.3 seconds.
    """

    device, device_id = "cpu", 0

    def __init__(self) -> None:
        self._blocks: dict[int, Bytes] = {}  # by address

    def available(self) -> int:
        return available_bytes()

    def allocate(self, size: int, max_size: int) -> int:
        try:
            reserved = mmap.mmap(-1, max_size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise NotEnoughMemory(f"{max_size} bytes of memory cannot be reserved") from error
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            reserved.madvise(mmap.MADV_NOHUGEPAGE)
        block = np.frombuffer(reserved, np.uint8)
        self._blocks[block.ctypes.data] = block
        return block.ctypes.data

    def grow(self, address: int, size: int, new_size: int) -> int:
        assert new_size <= self._blocks[address].size, "more than was reserved; this is a bug"
        return address

    def free(self, address: int) -> None:
        del self._blocks[address]

    def copy(self, *, source: int, target: int, pitch: int, width: int, height: int) -> None:
        rows = [self.read(address, height * pitch).reshape(height, pitch) for address in (target, source)]
        rows[0][:, :width] = rows[1][:, :width]

    def synchronize(self) -> None:
        """Copies complete at once."""

    def read(self, address: int, size: int) -> Bytes:
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class CudaMemory:
    """Memory of a GPU. `limit` is the number of bytes that may be allocated here, None for all that are free."""

    device = "cuda"

    def __init__(self, device_id: int, *, limit: int | None = None) -> None:
        self.device_id = device_id
        self._limit = limit
        self._cuda = ctypes.CDLL("libcudart.so.13")  # loaded by the provider already
        self._sizes: dict[int, int] = {}  # by address, in bytes
        weakref.finalize(self, _free_all, self._cuda, device_id, self._sizes).atexit = False

    def available(self) -> int:
        self._call("cudaSetDevice", self.device_id)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value if self._limit is None else min(free.value, self._limit - sum(self._sizes.values()))

    def allocate(self, size: int, max_size: int) -> int:
        self._call("cudaSetDevice", self.device_id)
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        assert address.value is not None, "CUDA gave no address; this is a bug"
        self._sizes[address.value] = size
        self._call("cudaMemset", address, 0, ctypes.c_size_t(size))
        return address.value

    def grow(self, address: int, size: int, new_size: int) -> int:
        larger = self.allocate(new_size, new_size)
        pointers = ctypes.c_void_p(larger), ctypes.c_void_p(address)
        self._call("cudaMemcpy", *pointers, ctypes.c_size_t(size), ON_DEVICE)
        self.synchronize()
        self.free(address)
        return larger

    def free(self, address: int) -> None:
        del self._sizes[address]
        self._call("cudaFree", ctypes.c_void_p(address))

    def copy(self, *, source: int, target: int, pitch: int, width: int, height: int) -> None:
        blocks = [ctypes.c_void_p(target), ctypes.c_size_t(pitch), ctypes.c_void_p(source), ctypes.c_size_t(pitch)]
        self._call("cudaMemcpy2D", *blocks, ctypes.c_size_t(width), ctypes.c_size_t(height), ON_DEVICE)

    def synchronize(self) -> None:
        self._call("cudaDeviceSynchronize")

    def read(self, address: int, size: int) -> Bytes:
        found = np.empty(size, np.uint8)
        pointers = ctypes.c_void_p(found.ctypes.data), ctypes.c_void_p(address)
        self._call("cudaMemcpy", *pointers, ctypes.c_size_t(size), TO_HOST)
        return found

    def _call(self, name: str, *arguments: Any) -> None:
        with cuda_read_lock(self.device):
            status = getattr(self._cuda, name)(*arguments)
        if status == OUT_OF_MEMORY:
            self._cuda.cudaGetLastError()  # clears the error, which the runtime would otherwise report as its own
            raise NotEnoughMemory("the GPU does not have enough free memory")
        if status:
            raise RuntimeError(f"{name} failed with CUDA error {status}")


def _free_all(cuda: ctypes.CDLL, device_id: int, sizes: dict[int, int]) -> None:
    cuda.cudaSetDevice(device_id)
    for address in sizes:
        cuda.cudaFree(ctypes.c_void_p(address))
