"""Runs of the GPT graph: a chunk of one prompt, a token of every running request, or whole texts at once.

The tensors of a decode step are bound once for each number of rows and then only filled, because binding them anew
costs more than a small model takes to compute. `logits` stays on the device until somebody asks for it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from server.generation.cache import Layout, SlotCache

Ids = NDArray[np.int64]
Floats = NDArray[np.float32]

TOP = ("top_scores", "top_ids", "logsumexp")  # bound first, in this order, and then the logits
ELEMENTS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class Scores:
    """What the model thinks comes next in n rows. Valid until the next run."""

    top_scores: Floats  # (n, K), the highest first
    top_ids: Ids  # (n, K)
    logsumexp: Floats  # (n,), over the whole vocabulary
    logits: Callable[[], Floats]  # (n, vocabulary), at the cost of fetching it


@dataclass(frozen=True)
class _Rows:
    """A decode step of a certain number of rows, bound and ready to be filled."""

    binding: onnxruntime.IOBinding
    inputs: dict[str, onnxruntime.OrtValue]
    outputs: dict[str, onnxruntime.OrtValue]


class Decoder:
    """A session, and the cache that it reads and writes. To be used by one thread at a time."""

    def __init__(self, session: onnxruntime.InferenceSession, cache: SlotCache) -> None:
        self.cache = cache
        self._session = session
        shapes = {value.name: value.shape for value in (*session.get_inputs(), *session.get_outputs())}
        self.vocabulary: int = shapes["logits"][1]
        self.likeliest: int = shapes["top_ids"][1]
        self._total_shape = tuple(shapes["total_sequence_length"])
        self._rows: dict[int, _Rows] = {}
        self._slots: dict[int, onnxruntime.IOBinding] = {}

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
        self._session.run_with_iobinding(binding)
        top_scores, top_ids, logsumexp, logits = binding.get_outputs()[:4]
        return Scores(top_scores.numpy(), top_ids.numpy(), logsumexp.numpy(), logits.numpy)

    def decode(self, token_ids: Ids, lengths: NDArray[np.int32]) -> Scores:
        """Append `token_ids` (n,) to the slots [0, n), which then hold `lengths` (n,) tokens: the scores after them."""
        count = len(token_ids)
        rows = self._rows.get(count) or self._bind_rows(count)
        rows.inputs["input_ids"].update_inplace(token_ids[:, None])
        rows.inputs["position_ids"].update_inplace((lengths - 1).astype(np.int64)[:, None])
        rows.inputs["lengths"].update_inplace(lengths)
        rows.inputs["total_sequence_length"].update_inplace(self._total(int(lengths.max())))
        self._session.run_with_iobinding(rows.binding)
        top_scores, top_ids, logsumexp = (rows.outputs[name].numpy() for name in TOP)
        return Scores(top_scores, top_ids, logsumexp, lambda: rows.binding.get_outputs()[3].numpy())

    def forward(self, texts: Sequence[Ids]) -> list[Floats]:
        """The logits (t, vocabulary) of whole texts of any lengths, apart from the cache."""
        lengths = np.array([len(text) for text in texts], np.int32)
        longest = int(lengths.max())
        input_ids = np.zeros((len(texts), longest), np.int64)
        for row, text in zip(input_ids, texts, strict=True):
            row[: len(text)] = text
        layout, shape = self.cache.layout, (len(texts), self.cache.layout.heads, longest, self.cache.layout.head_width)
        feeds = {
            "input_ids": input_ids,
            "position_ids": np.tile(np.arange(longest), (len(texts), 1)),
            "lengths": lengths,
            "total_sequence_length": self._total(longest),
            "selected": np.flatnonzero(np.arange(longest) < lengths[:, None]),
        }
        empty = np.zeros(shape, self.cache.dtype)
        feeds |= {f"past_{kind}.{layer}": empty for layer in range(layout.layers) for kind in ("key", "value")}
        (logits,) = self._session.run(["logits"], feeds)
        return list(np.split(logits, np.cumsum(lengths)[:-1]))

    def _total(self, tokens: int) -> NDArray[np.int32]:
        return np.full(self._total_shape, tokens, np.int32)

    def _bind_slot(self, slot: int) -> onnxruntime.IOBinding:
        binding = self._session.io_binding()
        for name in TOP:
            binding.bind_output(name, "cpu")
        binding.bind_output("logits", self.cache.device, self.cache.device_id)
        self.cache.bind(binding, first=slot, rows=1)
        self._slots[slot] = binding
        return binding

    def _bind_rows(self, count: int) -> _Rows:
        binding, device = self._session.io_binding(), (self.cache.device, self.cache.device_id)
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
        binding.bind_output("logits", *device)
        self.cache.bind(binding, first=0, rows=count)
        self._rows[count] = _Rows(binding, bound, outputs)
        return self._rows[count]


def make_cache(
    session: onnxruntime.InferenceSession, *, slots: int, capacity: int, device: str, device_id: int
) -> SlotCache:
    """The memory for `slots` requests of `capacity` tokens each; the graph says the rest."""
    keys = [value for value in session.get_inputs() if value.name.startswith("past_key.")]
    _, heads, _, head_width = keys[0].shape
    layout = Layout(layers=len(keys), slots=slots, heads=heads, capacity=capacity, head_width=head_width)
    return SlotCache(layout, dtype=ELEMENTS[keys[0].type], device=device, device_id=device_id)
