"""Runs of the GPT graph: a chunk of one prompt, a token of every running request, or whole texts at once.

The tensors of a decode step are bound once for each number of rows and then only filled, because binding them anew
costs more than a small model takes to compute. `logits` stays on the device until somebody asks for it: all runs write
it to one place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from server.arrays import Array, Floats, Ids
from server.generation.cache import SlotCache
from server.runtime.session import Session, run_options

TOP = ("top_scores", "top_ids", "logsumexp")  # bound first, in this order, and then the logits


@dataclass(frozen=True)
class Scores:
    """What the model thinks comes next in n rows. Valid until the next run."""

    top_scores: Floats  # (n, K), the highest first
    top_ids: Ids  # (n, K)
    logsumexp: Floats  # (n,), over the whole vocabulary
    logits: Callable[[Sequence[int]], Floats]  # rows → (rows, vocabulary), at the cost of fetching it

    def first(self, rows: int) -> "Scores":
        """Of so many rows."""
        return Scores(self.top_scores[:rows], self.top_ids[:rows], self.logsumexp[:rows], self.logits)


@dataclass(frozen=True)
class _Rows:
    """A decode step of a certain number of rows, bound and ready to be filled."""

    binding: onnxruntime.IOBinding
    inputs: dict[str, onnxruntime.OrtValue]
    outputs: dict[str, onnxruntime.OrtValue]
    options: onnxruntime.RunOptions


class Decoder:
    """A session, and the cache that it reads and writes. To be used by one thread at a time."""

    def __init__(self, session: Session, cache: SlotCache) -> None:
        self.cache = cache
        self._session = session
        self.vocabulary: int = session.tensor_shapes["logits"][1]
        self.likeliest: int = session.tensor_shapes["top_ids"][1]
        self._logits_type = np.dtype(session.output_types["logits"])
        self._total_shape = session.tensor_shapes["total_sequence_length"]
        self._slots: dict[int, onnxruntime.IOBinding] = {}
        self._rows: dict[int, _Rows] = {}
        self._eager = run_options()
        size = cache.layout.max_slots * self.vocabulary * self._logits_type.itemsize
        self._logits = cache.memory.take(size, size)

    def rows_of(self, texts: int) -> int:
        """How many rows a step has in which so many texts decode: the rest are idle, but need room in the cache."""
        return texts

    def grow(self, slots: int) -> None:
        """Have more slots. Raises NotEnoughMemory, and has as many as before."""
        self.cache.check_growth(slots)
        self.release()  # whatever happens from here on, the memory may have moved
        self._slots.clear()
        self._rows.clear()
        self.cache.grow(slots)

    def warm_up(self) -> None:
        """Run what the first steps would otherwise wait for. All slots must be free."""

    def release(self) -> None:
        """Forget what was prepared for the memory as it lies."""

    def prefill(self, slot: int, token_ids: Ids, past: int) -> Scores:
        """Read `token_ids` (t,) after the `past` tokens that the slot holds: one row, the scores after the last."""
        count = len(token_ids)
        binding = self._slots.get(slot) or self._bind_slot(slot)
        for name, value in {
            "input_ids": token_ids[None],
            "position_ids": np.arange(past, past + count)[None],
            "lengths": np.array([past + count], np.int32),
            "total_sequence_length": self._total(past + count),
            "selected": np.array([count - 1]),
        }.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        self._session.run_bound(binding, self._eager)
        top_scores, top_ids, logsumexp = (value.numpy() for value in binding.get_outputs()[:3])
        return Scores(top_scores, top_ids, logsumexp, self._read_logits)

    def decode(self, token_ids: Ids, lengths: NDArray[np.int32]) -> Scores:
        """Append `token_ids` (n,) to the slots [0, n), which then hold `lengths` (n,) tokens: the scores after them."""
        count = len(token_ids)
        rows = self._rows.get(count) or self._bind_rows(count)
        rows.inputs["input_ids"].update_inplace(token_ids[:, None])
        rows.inputs["position_ids"].update_inplace((lengths - 1).astype(np.int64)[:, None])
        rows.inputs["lengths"].update_inplace(lengths)
        rows.inputs["total_sequence_length"].update_inplace(self._total(self._total_of_a_step(lengths)))
        self._session.run_bound(rows.binding, rows.options)
        top_scores, top_ids, logsumexp = (rows.outputs[name].numpy() for name in TOP)
        return Scores(top_scores, top_ids, logsumexp, self._read_logits)

    def forward(self, texts: Sequence[Ids], longest: int) -> Iterator[list[Floats]]:
        """The logits (t, vocabulary) of whole texts, apart from the slots: of all of them in one run.

        A single text of more than `longest` tokens is read in so many runs, each of which gives the logits of its part.
        """
        lengths = np.array([len(text) for text in texts], np.int32)
        input_ids = np.zeros((len(texts), int(lengths.max())), np.int64)
        for row, text in zip(input_ids, texts, strict=True):
            row[: len(text)] = text
        if len(texts) > 1:
            longest = input_ids.shape[1]
        past: list[Array] = []
        for start in range(0, input_ids.shape[1], longest):
            part = input_ids[:, start : start + longest]
            here = np.minimum(lengths - start, part.shape[1])
            more = start + longest < input_ids.shape[1]
            logits, *past = self._run_apart(part, here, past, start=start, more=more)
            yield list(np.split(logits, np.cumsum(here)[:-1]))

    def _run_apart(
        self, input_ids: Ids, lengths: NDArray[np.int32], past: Sequence[Array], *, start: int, more: bool
    ) -> list[Array]:
        """The logits of the tokens (n, t) after the `start` tokens whose keys and values `past` has.

        If there are `more` to come, the keys and values of all of them are behind the logits.
        """
        layout, (rows, count) = self.cache.layout, input_ids.shape
        names = [f"{kind}.{layer}" for layer in range(layout.layers) for kind in ("key", "value")]
        empty = np.zeros((rows, layout.heads, count, layout.head_width), layout.dtype)
        feeds = {
            "input_ids": input_ids,
            "position_ids": np.tile(np.arange(start, start + count), (rows, 1)),
            "lengths": lengths + np.int32(start),
            "total_sequence_length": self._total(start + count),
            "selected": np.flatnonzero(np.arange(count) < lengths[:, None]),
        }
        feeds |= {f"past_{name}": value for name, value in zip(names, past or [empty] * len(names), strict=True)}
        wanted = ["logits", *(f"present_{name}" for name in names if more)]
        return list(self._session.run(feeds, wanted).values())

    def _total(self, tokens: int) -> NDArray[np.int32]:
        return np.full(self._total_shape, tokens, np.int32)

    def _total_of_a_step(self, lengths: NDArray[np.int32]) -> int:
        return int(lengths.max())

    def _options_of(self, rows: int) -> onnxruntime.RunOptions:
        return self._eager

    def _read_logits(self, rows: Sequence[int]) -> Floats:
        """The logits that the last run gave for these rows."""
        size = self.vocabulary * self._logits_type.itemsize
        found = [self.cache.memory.read(self._logits + row * size, size).view(self._logits_type) for row in rows]
        return np.stack(found).astype(np.float32, copy=False)

    def _bind_slot(self, slot: int) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name in TOP:
            binding.bind_output(name, "cpu")
        self._bind_logits(binding, 1)
        self.cache.bind(binding, first=slot, rows=1)
        self._slots[slot] = binding
        return binding

    def _bind_logits(self, binding: onnxruntime.IOBinding, rows: int) -> None:
        memory, shape = self.cache.memory, (rows, self.vocabulary)
        binding.bind_output("logits", memory.device, memory.device_id, self._logits_type, shape, self._logits)

    def _bind_rows(self, count: int) -> _Rows:
        binding, device = self._session.io_binding(), (self.cache.memory.device, self.cache.memory.device_id)
        inputs = {
            "input_ids": np.zeros((count, 1), np.int64),
            "position_ids": np.zeros((count, 1), np.int64),
            "lengths": np.zeros(count, np.int32),
            "selected": np.arange(count),
        }
        bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value, *device) for name, value in inputs.items()}
        bound["total_sequence_length"] = onnxruntime.OrtValue.ortvalue_from_numpy(self._total(0))  # wanted on the CPU
        for name, value in bound.items():
            binding.bind_ortvalue_input(name, value)
        likeliest = (count, self.likeliest)
        outputs = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(shape, element, *device)
            for name, shape, element in zip(
                TOP, (likeliest, likeliest, (count,)), (np.float32, np.int64, np.float32), strict=True
            )
        }
        for name, value in outputs.items():
            binding.bind_ortvalue_output(name, value)
        self._bind_logits(binding, count)
        self.cache.bind(binding, first=0, rows=count)
        self._rows[count] = _Rows(binding, bound, outputs, self._options_of(count))
        return self._rows[count]
