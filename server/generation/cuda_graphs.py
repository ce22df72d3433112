"""The decoder for GPUs, which captures its decode steps as CUDA graphs."""

from collections.abc import Sequence
from itertools import count

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from server.arrays import Array, Ids
from server.generation.cache import SlotCache
from server.generation.decoder import Decoder, Scores
from server.runtime.capture_lock import CAPTURE_LOCK
from server.runtime.session import Session, run_options

GRAPH_IDS = count(1)  # each captured graph of this process has its own


class CapturingDecoder(Decoder):
    """Captures the decode step of each batch size as a CUDA graph, and launches the graph from then on.

    The batch sizes are powers of two, and the number of slots, so that there are few graphs. A graph keeps the values
    of inputs in CPU memory from its capture, so `total_sequence_length` is always the capacity of a slot. On the CPU
    nothing is captured, and the same steps run as usual.
    """

    def __init__(self, session: Session, cache: SlotCache) -> None:
        super().__init__(session, cache)
        self._graph_ids: list[int] = []
        self._captured: set[int] = set()  # the batch sizes that have a graph

    def padded_batch_size(self, sequences: int) -> int:
        return min(1 << (sequences - 1).bit_length(), self.cache.slots)

    def warm_up(self) -> None:
        """Capture the graphs of all batch sizes."""
        for size in {self.padded_batch_size(sequences) for sequences in range(1, self.cache.slots + 1)}:
            self.decode(np.zeros(size, np.int64), np.ones(size, np.int32))

    def prefill(self, slot: int, token_ids: Ids, past: int) -> Scores:
        with CAPTURE_LOCK.read():
            return super().prefill(slot, token_ids, past)

    def decode(self, token_ids: Ids, lengths: NDArray[np.int32]) -> Scores:
        batch_size = len(token_ids)
        with CAPTURE_LOCK.read() if batch_size in self._captured else CAPTURE_LOCK.write():
            scores = super().decode(token_ids, lengths)
        self._captured.add(batch_size)
        return scores

    def _run_without_cache(
        self, input_ids: Ids, lengths: NDArray[np.int32], past: Sequence[Array], *, start: int, more: bool
    ) -> list[Array]:
        with CAPTURE_LOCK.read():
            return super()._run_without_cache(input_ids, lengths, past, start=start, more=more)

    def release(self) -> None:
        """Release the graphs, because they contain addresses that are about to be freed."""
        self._captured.clear()
        with CAPTURE_LOCK.read():
            while self._graph_ids:
                self._session.release_captured_graph(self._graph_ids.pop())

    def _step_length(self, lengths: NDArray[np.int32]) -> int:
        return self.cache.layout.capacity

    def _options_of(self, batch_size: int) -> onnxruntime.RunOptions:
        self._graph_ids.append(next(GRAPH_IDS))
        return run_options(self._graph_ids[-1])
