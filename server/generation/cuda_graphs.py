"""Which decoder goes with which provider, and the one for GPUs, which captures its steps."""

from collections.abc import Sequence
from itertools import count

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from server.arrays import Array, Ids
from server.generation.cache import Layout, SlotCache
from server.generation.decoder import Decoder, Scores
from server.generation.device_memory import CudaMemory, HostMemory, Memory
from server.runtime.capture_lock import CAPTURE_LOCK
from server.runtime.session import Session, run_options

GRAPHS = count(1)  # no two decoders of this process capture under the same number


class CapturingDecoder(Decoder):
    """Decode steps are captured as CUDA graphs once for each number of rows, and then only launched.

    So that there are few, a step has one of a few numbers of rows. What a graph has seen in the CPU's memory is frozen
    in it, which is why the longest length is said to be the longest there can be. Where nothing can be captured, on a
    CPU, the same steps are run one by one.
    """

    def __init__(self, session: Session, cache: SlotCache) -> None:
        super().__init__(session, cache)
        self._graphs: list[int] = []
        self._captured: set[int] = set()  # the numbers of rows whose graphs are there

    def rows_of(self, texts: int) -> int:
        return min(1 << (texts - 1).bit_length(), self.cache.slots)

    def warm_up(self) -> None:
        for rows in {self.rows_of(texts) for texts in range(1, self.cache.slots + 1)}:
            self.decode(np.zeros(rows, np.int64), np.ones(rows, np.int32))

    def prefill(self, slot: int, token_ids: Ids, past: int) -> Scores:
        with CAPTURE_LOCK.read():
            return super().prefill(slot, token_ids, past)

    def decode(self, token_ids: Ids, lengths: NDArray[np.int32]) -> Scores:
        rows = len(token_ids)
        with CAPTURE_LOCK.read() if rows in self._captured else CAPTURE_LOCK.write():
            scores = super().decode(token_ids, lengths)
        self._captured.add(rows)
        return scores

    def _run_apart(
        self, input_ids: Ids, lengths: NDArray[np.int32], past: Sequence[Array], *, start: int, more: bool
    ) -> list[Array]:
        with CAPTURE_LOCK.read():
            return super()._run_apart(input_ids, lengths, past, start=start, more=more)

    def release(self) -> None:
        """Forget the graphs: they know addresses that will be somebody else's."""
        self._captured.clear()
        with CAPTURE_LOCK.read():
            while self._graphs:
                self._session.release_captured_graph(self._graphs.pop())

    def _total_of_a_step(self, lengths: NDArray[np.int32]) -> int:
        return self.cache.layout.capacity

    def _options_of(self, rows: int) -> onnxruntime.RunOptions:
        self._graphs.append(next(GRAPHS))
        return run_options(self._graphs[-1])


DECODERS = {"cuda": CapturingDecoder}  # by provider


def decoder_of(session: Session, layout: Layout, memory: Memory) -> Decoder:
    """A decoder over a new cache. Raises NotEnoughMemory."""
    return DECODERS.get(session.provider, Decoder)(session, SlotCache(layout, memory))


def memory_of(session: Session, *, device_id: int = 0, limit: int | None = None) -> Memory:
    """Where the session computes. `limit` is how many bytes may be taken of a GPU."""
    return CudaMemory(device_id, limit=limit) if session.provider == "cuda" else HostMemory()


def layout_of(session: Session, *, slots: int, max_slots: int, capacity: int) -> Layout:
    """The shape of a cache; the graph says what was not asked."""
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
