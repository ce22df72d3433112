"""Memory where the model computes: taken, moved, read and given back by address. Knows nothing of slots.

Two of a kind: `HostMemory` and `CudaMemory`. What does not fit is NotEnoughMemory, before or when it is taken.
"""

import ctypes
import mmap
import weakref
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from server.errors import NotEnoughMemory
from server.host.memory import available_bytes
from server.runtime.capture_lock import beside_captures

Bytes = NDArray[np.uint8]
OUT_OF_MEMORY = 2  # cudaErrorMemoryAllocation
TO_HOST, ON_DEVICE = 2, 3  # kinds of cudaMemcpy


class Memory(Protocol):
    """Where tensors lie: `device` and `device_id` as ONNX Runtime calls the place. For one thread at a time."""

    device: str
    device_id: int

    def available(self) -> int:
        """Bytes that can still be taken."""

    def take(self, size: int, most: int) -> int:
        """The address of so many bytes, all zero, that may grow to `most`. Raises NotEnoughMemory."""

    def grow(self, address: int, size: int, new: int) -> int:
        """Make `size` bytes `new` bytes; they may move, and what is new is zero. Raises NotEnoughMemory."""

    def give_back(self, address: int) -> None:
        """Free the bytes at an address."""

    def copy(self, *, source: int, target: int, pitch: int, width: int, height: int) -> None:
        """Copy the first `width` bytes of each of `height` rows that begin `pitch` bytes apart; done after `wait`."""

    def wait(self) -> None:
        """Until what was copied is there."""

    def read(self, address: int, size: int) -> Bytes:
        """So many bytes; they may change with the next run."""


class HostMemory:
    """Memory of this process. The system gives it when it is written to, so what may be needed is reserved at once.

    It gives it in small pages: a prompt touches a little of each head's memory, and to be given, and zeroed, 2 MB for
    each of these places let the first request in a slot of GPT-2 wait for 0.1 to 0.3 seconds.
    """

    device, device_id = "cpu", 0

    def __init__(self) -> None:
        self._taken: dict[int, Bytes] = {}

    def available(self) -> int:
        return available_bytes()

    def take(self, size: int, most: int) -> int:
        try:
            reserved = mmap.mmap(-1, most, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            raise NotEnoughMemory(f"{most} bytes of memory cannot be reserved") from error
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            reserved.madvise(mmap.MADV_NOHUGEPAGE)
        taken = np.frombuffer(reserved, np.uint8)
        self._taken[taken.ctypes.data] = taken
        return taken.ctypes.data

    def grow(self, address: int, size: int, new: int) -> int:
        assert new <= self._taken[address].size, "more than was reserved; this is a bug"
        return address

    def give_back(self, address: int) -> None:
        del self._taken[address]

    def copy(self, *, source: int, target: int, pitch: int, width: int, height: int) -> None:
        rows = [self.read(address, height * pitch).reshape(height, pitch) for address in (target, source)]
        rows[0][:, :width] = rows[1][:, :width]

    def wait(self) -> None:
        """It is there."""

    def read(self, address: int, size: int) -> Bytes:
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class CudaMemory:
    """Memory of a GPU. `limit` is how many bytes may be taken here, None for all that is free."""

    device = "cuda"

    def __init__(self, device_id: int, *, limit: int | None = None) -> None:
        self.device_id = device_id
        self._limit = limit
        self._cuda = ctypes.CDLL("libcudart.so.13")  # loaded by the provider already
        self._taken: dict[int, int] = {}  # address → bytes
        weakref.finalize(self, _give_back_all, self._cuda, device_id, self._taken).atexit = False

    def available(self) -> int:
        self._call("cudaSetDevice", self.device_id)
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value if self._limit is None else min(free.value, self._limit - sum(self._taken.values()))

    def take(self, size: int, most: int) -> int:
        self._call("cudaSetDevice", self.device_id)
        address = ctypes.c_void_p()
        self._call("cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        assert address.value is not None, "CUDA gave no address; this is a bug"
        self._taken[address.value] = size
        self._call("cudaMemset", address, 0, ctypes.c_size_t(size))
        return address.value

    def grow(self, address: int, size: int, new: int) -> int:
        larger = self.take(new, new)
        pointers = ctypes.c_void_p(larger), ctypes.c_void_p(address)
        self._call("cudaMemcpy", *pointers, ctypes.c_size_t(size), ON_DEVICE)
        self.wait()
        self.give_back(address)
        return larger

    def give_back(self, address: int) -> None:
        del self._taken[address]
        self._call("cudaFree", ctypes.c_void_p(address))

    def copy(self, *, source: int, target: int, pitch: int, width: int, height: int) -> None:
        place = [ctypes.c_void_p(target), ctypes.c_size_t(pitch), ctypes.c_void_p(source), ctypes.c_size_t(pitch)]
        self._call("cudaMemcpy2D", *place, ctypes.c_size_t(width), ctypes.c_size_t(height), ON_DEVICE)

    def wait(self) -> None:
        self._call("cudaDeviceSynchronize")

    def read(self, address: int, size: int) -> Bytes:
        found = np.empty(size, np.uint8)
        pointers = ctypes.c_void_p(found.ctypes.data), ctypes.c_void_p(address)
        self._call("cudaMemcpy", *pointers, ctypes.c_size_t(size), TO_HOST)
        return found

    def _call(self, name: str, *arguments: Any) -> None:
        with beside_captures(self.device):
            status = getattr(self._cuda, name)(*arguments)
        if status == OUT_OF_MEMORY:
            self._cuda.cudaGetLastError()  # or the runtime would take the error for its own
            raise NotEnoughMemory("the GPU has not as much memory left")
        if status:
            raise RuntimeError(f"{name} failed with CUDA error {status}")


def _give_back_all(cuda: ctypes.CDLL, device_id: int, taken: dict[int, int]) -> None:
    cuda.cudaSetDevice(device_id)
    for address in taken:
        cuda.cudaFree(ctypes.c_void_p(address))
