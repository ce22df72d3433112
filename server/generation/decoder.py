"""Runs of the GPT graph: a chunk of one prompt, a decode step of all running sequences, or a batch of whole texts.

The tensors of a decode step are bound once for each batch size and then only filled, because binding them again takes
longer than a small model takes to compute. All runs write `logits` to the same memory of the device, where they stay
until they are read.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from server.arrays import Array, Floats, Ids
from server.generation.cache import SlotCache
from server.runtime.session import Session, run_options

TOP_OUTPUTS = ("top_scores", "top_ids", "logsumexp")  # bound first, in this order, before the logits


@dataclass(frozen=True)
class Scores:
    """The scores of the next token in n rows. Valid until the next run."""

    top_scores: Floats  # (n, K), the highest first
    top_ids: Ids  # (n, K)
    logsumexp: Floats  # (n,), over the whole vocabulary
    logits: Callable[[Sequence[int]], Floats]  # m rows → (m, vocabulary); copies them from the device

    def first(self, rows: int) -> "Scores":
        """The scores of the first `rows` rows."""
        return Scores(self.top_scores[:rows], self.top_ids[:rows], self.logsumexp[:rows], self.logits)


@dataclass(frozen=True, kw_only=True)
class _DecodeBinding:
    """The bound tensors of a decode step of one batch size n. On the CPU, the runtime uses the arrays themselves."""

    binding: onnxruntime.IOBinding
    input_ids: Ids  # (n, 1)
    position_ids: Ids  # (n, 1)
    lengths: NDArray[np.int32]  # (n,)
    total_length: NDArray[np.int32]  # of the shape that the graph takes
    selected: Ids  # (n,)
    outputs: tuple[Array, ...]  # on the CPU: those of TOP_OUTPUTS
    uploads: tuple[tuple[onnxruntime.OrtValue, Array], ...]  # the inputs that are copied to another device
    downloads: tuple[onnxruntime.OrtValue, ...]  # on another device: the outputs
    options: onnxruntime.RunOptions

    def fill(self, token_ids: Ids, lengths: NDArray[np.int32], step_length: int) -> None:
        """Set the inputs of the next run."""
        self.input_ids[:, 0] = token_ids
        np.subtract(lengths, 1, out=self.position_ids[:, 0])
        self.lengths[:] = lengths
        self.total_length.fill(step_length)
        for value, array in self.uploads:
            value.update_inplace(array)

    def top_outputs(self) -> tuple[Array, ...]:
        """The outputs of the last run."""
        return self.outputs or tuple(value.numpy() for value in self.downloads)


class Decoder:
    """A session, and the cache that it reads and writes. Not thread-safe."""

    def __init__(self, session: Session, cache: SlotCache) -> None:
        self.cache = cache
        self._session = session
        self.vocabulary: int = session.tensor_shapes["logits"][1]
        self.graph_top_k: int = session.tensor_shapes["top_ids"][1]
        self._logits_type = np.dtype(session.output_types["logits"])
        self._total_shape = session.tensor_shapes["total_sequence_length"]
        self._prefill_bindings: dict[int, onnxruntime.IOBinding] = {}
        self._decode_bindings: dict[int, _DecodeBinding] = {}
        self._eager = run_options()
        size = cache.layout.max_slots * self.vocabulary * self._logits_type.itemsize
        self._logits = cache.memory.allocate(size, size)

    def padded_batch_size(self, sequences: int) -> int:
        """The number of rows of a decode step for `sequences` sequences. Padding rows use slots of the cache, too."""
        return sequences

    def grow(self, slots: int) -> None:
        """Add slots, up to `slots`. On NotEnoughMemory the cache is as before."""
        self.cache.check_growth(slots)
        self.release()  # the memory may move from here on, even if growing fails
        self._prefill_bindings.clear()
        self._decode_bindings.clear()
        self.cache.grow(slots)

    def warm_up(self) -> None:
        """Prepare for the first steps. All slots must be free."""

    def release(self) -> None:
        """Release everything that depends on the addresses of the cache."""

    def prefill(self, slot: int, token_ids: Ids, past: int) -> Scores:
        """Append `token_ids` (t,) to the first `past` tokens of a slot. Returns one row, after the last token."""
        count = len(token_ids)
        binding = self._prefill_bindings.get(slot) or self._bind_prefill(slot)
        for name, value in {
            "input_ids": token_ids[None],
            "position_ids": np.arange(past, past + count)[None],
            "lengths": np.array([past + count], np.int32),
            "total_sequence_length": self._total_length(past + count),
            "selected": np.array([count - 1]),
        }.items():
            binding.bind_cpu_input(name, np.ascontiguousarray(value))
        self._session.run_bound(binding, self._eager)
        top_scores, top_ids, logsumexp = (value.numpy() for value in binding.get_outputs()[:3])
        return Scores(top_scores, top_ids, logsumexp, self._read_logits)

    def decode(self, token_ids: Ids, lengths: NDArray[np.int32]) -> Scores:
        """Append `token_ids` (n,) to the slots [0, n), which then hold `lengths` (n,) tokens. Returns n rows."""
        count = len(token_ids)
        rows = self._decode_bindings.get(count) or self._bind_decode(count)
        rows.fill(token_ids, lengths, self._step_length(lengths))
        self._session.run_bound(rows.binding, rows.options)
        top_scores, top_ids, logsumexp = rows.top_outputs()
        return Scores(top_scores, top_ids, logsumexp, self._read_logits)

    def forward(self, texts: Sequence[Ids], max_tokens: int) -> Iterator[list[Floats]]:
        """The logits (t, vocabulary) of each text (t,), computed without the cache.

        Several texts are computed in a single run. One text is computed in chunks of `max_tokens` tokens, and the
        logits of each chunk are yielded after its run.
        """
        lengths = np.array([len(text) for text in texts], np.int32)
        input_ids = np.zeros((len(texts), int(lengths.max())), np.int64)
        for row, text in zip(input_ids, texts, strict=True):
            row[: len(text)] = text
        if len(texts) > 1:
            max_tokens = input_ids.shape[1]
        past: list[Array] = []
        for start in range(0, input_ids.shape[1], max_tokens):
            chunk = input_ids[:, start : start + max_tokens]
            chunk_lengths = np.minimum(lengths - start, chunk.shape[1])
            more = start + max_tokens < input_ids.shape[1]
            logits, *past = self._run_without_cache(chunk, chunk_lengths, past, start=start, more=more)
            yield list(np.split(logits, np.cumsum(chunk_lengths)[:-1]))

    def _run_without_cache(
        self, input_ids: Ids, lengths: NDArray[np.int32], past: Sequence[Array], *, start: int, more: bool
    ) -> list[Array]:
        """The logits of `input_ids` (n, t), which follow `start` tokens whose keys and values are in `past`.

        The logits are one row for each of the `lengths` (n,) tokens, without padding: (sum of lengths, vocabulary). If
        `more` chunks follow, the keys and values of all tokens so far come after the logits.
        """
        layout, (rows, count) = self.cache.layout, input_ids.shape
        names = [f"{kind}.{layer}" for layer in range(layout.layers) for kind in ("key", "value")]
        empty = np.zeros((rows, layout.heads, count, layout.head_width), layout.dtype)
        feeds = {
            "input_ids": input_ids,
            "position_ids": np.tile(np.arange(start, start + count), (rows, 1)),
            "lengths": lengths + np.int32(start),
            "total_sequence_length": self._total_length(start + count),
            "selected": np.flatnonzero(np.arange(count) < lengths[:, None]),
        }
        feeds |= {f"past_{name}": value for name, value in zip(names, past or [empty] * len(names), strict=True)}
        wanted = ["logits", *(f"present_{name}" for name in names if more)]
        return list(self._session.run(feeds, wanted).values())

    def _total_length(self, tokens: int) -> NDArray[np.int32]:
        return np.full(self._total_shape, tokens, np.int32)

    def _step_length(self, lengths: NDArray[np.int32]) -> int:
        return int(lengths.max())

    def _options_of(self, batch_size: int) -> onnxruntime.RunOptions:
        return self._eager

    def _read_logits(self, rows: Sequence[int]) -> Floats:
        """The logits (m, vocabulary) of these m rows, from the last run."""
        size = self.vocabulary * self._logits_type.itemsize
        found = [self.cache.memory.read(self._logits + row * size, size).view(self._logits_type) for row in rows]
        return np.stack(found).astype(np.float32, copy=False)

    def _bind_prefill(self, slot: int) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name in TOP_OUTPUTS:
            binding.bind_output(name, "cpu")
        self._bind_logits(binding, 1)
        self.cache.bind(binding, first=slot, count=1)
        self._prefill_bindings[slot] = binding
        return binding

    def _bind_logits(self, binding: onnxruntime.IOBinding, rows: int) -> None:
        memory, shape = self.cache.memory, (rows, self.vocabulary)
        binding.bind_output("logits", memory.device, memory.device_id, self._logits_type, shape, self._logits)

    def _bind_decode(self, count: int) -> _DecodeBinding:
        binding, device = self._session.io_binding(), (self.cache.memory.device, self.cache.memory.device_id)
        inputs: dict[str, Array] = {
            "input_ids": np.zeros((count, 1), np.int64),
            "position_ids": np.zeros((count, 1), np.int64),
            "lengths": np.zeros(count, np.int32),
        }
        total_length, selected = self._total_length(0), np.arange(count)
        bound = {name: onnxruntime.OrtValue.ortvalue_from_numpy(value, *device) for name, value in inputs.items()}
        constant = {"selected": onnxruntime.OrtValue.ortvalue_from_numpy(selected, *device)}
        # The graph reads this input on the CPU.
        constant["total_sequence_length"] = onnxruntime.OrtValue.ortvalue_from_numpy(total_length)
        for name, value in (bound | constant).items():
            binding.bind_ortvalue_input(name, value)
        top_shape = (count, self.graph_top_k)
        arrays = (np.zeros(top_shape, np.float32), np.zeros(top_shape, np.int64), np.zeros(count, np.float32))
        outputs = tuple(onnxruntime.OrtValue.ortvalue_from_numpy(array, *device) for array in arrays)
        for name, value in zip(TOP_OUTPUTS, outputs, strict=True):
            binding.bind_ortvalue_output(name, value)
        self._bind_logits(binding, count)
        self.cache.bind(binding, first=0, count=count)
        on_cpu = device[0] == "cpu"
        self._decode_bindings[count] = _DecodeBinding(
            binding=binding,
            **inputs,
            total_length=total_length,
            selected=selected,
            outputs=arrays if on_cpu else (),
            uploads=() if on_cpu else tuple((value, inputs[name]) for name, value in bound.items()),
            downloads=() if on_cpu else outputs,
            options=self._options_of(count),
        )
        return self._decode_bindings[count]
