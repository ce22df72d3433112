"""A session that keeps device memory for its inputs; runs of the same shapes share it."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime

from server.arrays import Array
from server.runtime.session import Session

# The limit on the device memory of bound inputs, in addition to the arena that `gpu_mem_limit` bounds. With the buckets
# of server/batching/shape_buckets.py, the inputs of all shapes of 64 images of 224 x 224 pixels take 240 MB, and those
# of texts far less.
MAX_BOUND_BYTES = 256 << 20
MAX_BOUND_SHAPES = 1024


class BoundSession(Session):
    """Keeps device memory for inputs, shared by runs of the same shapes, and copies only the requested outputs.

    The other outputs stay on the device. The inputs use up to `max_bytes`, or as much as one run needs if that is
    more; the memory of the least recently used shapes is freed. Not thread-safe.
    """

    def __init__(
        self,
        ort: onnxruntime.InferenceSession,
        *,
        provider: str,
        precision: str,
        device: int = 0,
        max_bytes: int = MAX_BOUND_BYTES,
    ) -> None:
        super().__init__(ort, provider=provider, precision=precision, device=device)
        self._max_bytes, self._bytes = max_bytes, 0
        self._device = ("cuda", device) if provider == "cuda" else ("cpu", 0)
        self._bound: OrderedDict[object, _Bound] = OrderedDict()  # least recently used first

    @property
    def shapes(self) -> int:
        """The number of input shapes that have memory."""
        return len(self._bound)

    def _run(self, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
        bound = self._bound_to(feeds)
        for name, value in feeds.items():
            bound.inputs[name].update_inplace(np.ascontiguousarray(value))
        for name in outputs:
            bound.binding.bind_output(name, *self._device)
        try:
            self.ort.run_with_iobinding(bound.binding)
            return dict(zip(outputs, bound.binding.copy_outputs_to_cpu(), strict=True))
        finally:
            bound.binding.clear_binding_outputs()  # so that the next run can use their memory

    def _bound_to(self, feeds: Mapping[str, Array]) -> "_Bound":
        key = tuple((name, value.shape) for name, value in feeds.items())
        if key not in self._bound:
            self._evict(sum(value.nbytes for value in feeds.values()))
            self._bound[key] = self._bind(feeds)
            self._bytes += self._bound[key].bytes
        self._bound.move_to_end(key)
        return self._bound[key]

    def _evict(self, size: int) -> None:
        """Free the least recently used shapes until `size` more bytes fit."""
        while self._bound and (self._bytes + size > self._max_bytes or self.shapes >= MAX_BOUND_SHAPES):
            _, evicted = self._bound.popitem(last=False)
            self._bytes -= evicted.bytes

    def _bind(self, feeds: Mapping[str, Array]) -> "_Bound":
        binding, inputs = self.ort.io_binding(), {}
        for name, value in feeds.items():
            inputs[name] = onnxruntime.OrtValue.ortvalue_from_shape_and_type(value.shape, value.dtype, *self._device)
            binding.bind_ortvalue_input(name, inputs[name])
        return _Bound(binding, inputs, sum(value.nbytes for value in feeds.values()))


@dataclass(frozen=True)
class _Bound:
    """The binding of a run of certain shapes, with the inputs to fill."""

    binding: onnxruntime.IOBinding
    inputs: dict[str, onnxruntime.OrtValue]
    bytes: int  # of the inputs
