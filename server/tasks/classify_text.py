"""Classification of texts, and of pairs of texts."""

from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass

from server.admission.queue import RequestContext
from server.artifact import Artifact
from server.batching.batcher import Batcher
from server.batching.collate import TextItem
from server.errors import InvalidRequest
from server.tasks.classification import DEFAULT, Class, check_classes, ranked, score_function
from server.text.encode import AsyncEncoder
from server.text.tokenizer import EncodedText, TextEncoder, TokenUsage


@dataclass(frozen=True)
class ClassifiedText:
    classes: list[Class]  # most likely first
    usage: TokenUsage


class ClassifyText:
    """Classifies texts by the model's own labels."""

    def __init__(self, artifact: Artifact, batcher: Batcher, encoder: TextEncoder, threads: Executor) -> None:
        self.labels = tuple(artifact.manifest.labels)
        self.function = artifact.manifest.function_to_apply or "softmax"
        self._segments = artifact.manifest.text.segments
        self._batcher, self._encode, self._threads = batcher, AsyncEncoder(encoder, threads), threads

    async def __call__(
        self,
        texts: Sequence[str],
        pairs: Sequence[str] = (),
        *,
        top_k: int | None = None,
        function_to_apply: str = DEFAULT,
        truncate: bool = False,
        context: RequestContext,
        field: str = "texts",
        pair_field: str = "text_pairs",
    ) -> list[ClassifiedText]:
        """The classes of each text or pair of texts, most likely first: all of them, or `top_k`."""
        count = check_classes(top_k, self.labels, inputs=len(texts))
        scores = score_function(function_to_apply, self.function)
        async with self._batcher.reserve(len(texts), context, field=field) as reservation:
            tokens = await self._encode(texts, pairs, truncate=truncate, field=field, pair_field=pair_field)
            items = [self._item(each, f"{pair_field}[{number}]") for number, each in enumerate(tokens)]
            answers = await self._batcher.run(items, reservation)
            logits = [answer["logits"] for answer in answers]
            classes = await ranked(logits, scores, self.labels, top_k=count, threads=self._threads)
        return [ClassifiedText(found, each.usage) for found, each in zip(classes, tokens, strict=True)]

    def _item(self, tokens: EncodedText, pair_field: str) -> TextItem:
        if self._segments and tokens.token_type_ids.max() >= self._segments:
            raise InvalidRequest(pair_field, "a second text", f"none: the model knows {self._segments} segment")
        return TextItem(
            input_ids=tokens.input_ids,
            token_type_ids=tokens.token_type_ids,
            position_ids=tokens.position_ids,
            outputs=("logits",),
        )
