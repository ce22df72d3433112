"""Generation: streams the continuations of prompts until a stop string, a stop token or a limit; and logits of GPT."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, asynccontextmanager
from functools import partial

import numpy as np

from server.admission.queue import RequestContext
from server.arrays import Array, Ids
from server.generation.engine import Engine
from server.generation.replicas import EngineReplicas
from server.generation.request import ListLimits, Sampling
from server.generation.stream import TokensPrompt
from server.tasks.tensors import check_size, read_ids, read_lengths, read_segments
from server.tasks.text_stream import DeltaBuilder, TextStream
from server.text.detokenizer import StopStrings
from server.text.tokenizer import TextEncoder

Prompt = str | Sequence[int]

DEFAULT_LIMITS = ListLimits()


class Generate:
    """Continues text, over an engine that knows only tokens."""

    def __init__(
        self,
        engine: Engine | EngineReplicas,
        encoder: TextEncoder,
        threads: Executor,
        *,
        limits: ListLimits = DEFAULT_LIMITS,
        stream_interval: int = 1,
    ) -> None:
        """`limits` are those of the lists in a request, for the protocols, which check them when they read it.

        `stream_interval` is the number of tokens in a delta; see `TextStream`.
        """
        self._engine, self._encoder, self._threads, self.limits = engine, encoder, threads, limits
        self._stream_interval = stream_interval

    @asynccontextmanager
    async def stream(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling,
        *,
        stop: Sequence[str] = (),
        include_stop: bool = False,
        context: RequestContext,
        field: str = "prompts",
    ) -> AsyncIterator[TextStream]:
        """Stream the continuations of all prompts, or of none. On exit, unfinished continuations are cancelled.

        Raises the errors of `Engine.admit` on entry. `field` is the name of the prompts in errors.
        """
        with ExitStack() as stack:
            with self._engine.in_flight.track():  # until the prompts are admitted; from then on the engine tracks them
                with self._engine.reserve(len(prompts), field=field):
                    encode = partial(self._prompt_ids, prompts, field)
                    prompt_ids = await asyncio.get_running_loop().run_in_executor(self._threads, encode)
                    builders = [self._delta_builder(stop, include_stop, sampling) for _ in prompts]
                    stream = TextStream(builders, interval=self._stream_interval)
                token_prompts = [
                    TokensPrompt(name, ids, partial(stream.push, number))
                    for number, (name, ids) in enumerate(prompt_ids.items())
                ]  # no await between the reservation and the admission: the queue still has space
                stack.enter_context(self._engine.admit(token_prompts, sampling, context, field=field))
            yield stream

    def _delta_builder(self, stop: Sequence[str], include_stop: bool, sampling: Sampling) -> DeltaBuilder:
        return DeltaBuilder(self._encoder.detokenizer(), StopStrings(stop, include=include_stop), sampling)

    def _prompt_ids(self, prompts: Sequence[Prompt], field: str) -> dict[str, Ids]:
        """The token ids (t,) of each prompt, by its name in errors. Runs in a thread."""
        names = [f"{field}[{number}]" for number in range(len(prompts))]
        return {name: self._ids(name, prompt) for name, prompt in zip(names, prompts, strict=True)}

    def _ids(self, name: str, prompt: Prompt) -> Ids:
        if isinstance(prompt, str):
            return self._encoder.encode_one(prompt, field=name).input_ids
        self._engine.check_length(name, len(prompt))  # before a list of millions of numbers is converted
        return np.array(prompt, np.int64)


class RawGpt:
    """`input_ids` (n, t), optional `attention_mask` alike, both INT64 → `logits` (n, t, v) FP32, zeros at padding."""

    def __init__(self, engine: Engine | EngineReplicas) -> None:
        self._engine = engine

    async def __call__(self, inputs: Mapping[str, Array], *, context: RequestContext) -> dict[str, Array]:
        vocabulary = self._engine.vocabulary
        ids = read_ids(inputs, max_length=self._engine.context_length)
        check_size(ids, vocabulary)
        lengths = read_lengths(ids, inputs, vocabulary=vocabulary)
        read_segments(ids, lengths, inputs, segments=0)
        with self._engine.in_flight.track():
            return {"logits": await self._engine.logits(ids, lengths, context)}
