"""The tasks of the server as steps: which calls to send, and how to read their responses. Shared by both clients."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from protos import affinity_pb2 as pb
from server.client.calls import TYPED, Call, Steps, chunks, every, size_of
from server.client.catalogue import Catalogue

FLOAT32 = np.dtype("<f4")  # of Embedding.embedding_bytes
InputT = TypeVar("InputT", str, bytes)
ResponseT = TypeVar("ResponseT", bound=Message)


class Tasks(Catalogue):
    """The calls of every method of the clients. Many inputs are sent as several calls, in their order.

    Calls that name no model use the first model, in alphabetical order, that serves the task.
    """

    # ---- the tasks

    def fill_mask(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        top_k: int | None = None,
        targets: Sequence[str] = (),
        truncate: bool = False,
    ) -> Steps[list[pb.FilledText]]:
        """The most probable tokens for each mask of each text; only tokens of `targets` if that is given."""
        model = model or (yield from self.choose("fill-mask"))

        def request(part: slice) -> pb.FillMaskRequest:
            return pb.FillMaskRequest(model=model, inputs=texts[part], top_k=top_k, targets=targets, truncate=truncate)

        responses = yield from self._chunked("FillMask", model, texts, request, pb.FillMaskResponse)
        return [result for response in responses for result in response.results]

    def generate(self, /, prompt: str, *, model: str = "", **sampling: Any) -> Steps[Call[pb.GenerateResponse]]:
        """Iterate over the parts of the generated text. `sampling`: fields of GenerateRequest, such as max_tokens.

        The call starts with the first part. It is cancelled when the iterator is closed, left or dropped.
        """
        model = model or (yield from self.choose("generate"))
        request = pb.GenerateRequest(model=model, prompts=[pb.Prompt(text=prompt)], **sampling)
        return Call(TYPED + "Generate", request, pb.GenerateResponse)

    def classify_image(
        self, images: Sequence[bytes], *, model: str = "", top_k: int | None = None, function_to_apply: str = ""
    ) -> Steps[list[pb.Classification]]:
        """The most probable classes of each image. `images` are JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF files.

        `function_to_apply` turns logits into scores: softmax, sigmoid or none; empty for the model's own function.
        """
        model = model or (yield from self.choose("classify-image"))

        def request(part: slice) -> pb.ClassifyImageRequest:
            return pb.ClassifyImageRequest(
                model=model, images=images[part], top_k=top_k, function_to_apply=function_to_apply
            )

        responses = yield from self._chunked("ClassifyImage", model, images, request, pb.ClassifyResponse)
        return [result for response in responses for result in response.results]

    def classify_text(
        self,
        texts: Sequence[str],
        *,
        text_pairs: Sequence[str] = (),
        model: str = "",
        top_k: int | None = None,
        function_to_apply: str = "",
        truncate: bool = False,
    ) -> Steps[list[pb.Classification]]:
        """The most probable classes of each text, or of each pair of texts; all classes if `top_k` is None."""
        model = model or (yield from self.choose("classify-text"))

        def request(part: slice) -> pb.ClassifyTextRequest:
            return pb.ClassifyTextRequest(
                model=model,
                inputs=texts[part],
                text_pairs=text_pairs[part],
                top_k=top_k,
                function_to_apply=function_to_apply,
                truncate=truncate,
            )

        responses = yield from self._chunked(
            "ClassifyText", model, texts, request, pb.ClassifyResponse, pairs=text_pairs
        )
        return [result for response in responses for result in response.results]

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        normalize: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
    ) -> Steps[list[list[float]]]:
        """One vector for each text. `normalize` scales vectors to length 1; None: as the model does by default.

        `prompt_name` selects the prompt that precedes each text: None for the model's default prompt, "" for no prompt.
        """
        vectors = yield from self.embed_array(
            texts,
            model=model,
            normalize=normalize,
            dimensions=dimensions,
            prompt_name=prompt_name,
            truncate=truncate,
        )
        return vectors.tolist()  # type: ignore[no-any-return]

    def embed_array(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        normalize: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
    ) -> Steps[NDArray[np.float32]]:
        """The vectors of `embed` as an array (texts, width), several times as fast for many texts."""
        model = model or (yield from self.choose("embed"))

        def request(part: slice) -> pb.EmbedRequest:
            return pb.EmbedRequest(
                model=model,
                inputs=texts[part],
                normalize=normalize,
                dimensions=dimensions,
                prompt_name=prompt_name,
                truncate=truncate,
                encoding_format="bytes",
            )

        responses = yield from self._chunked("Embed", model, texts, request, pb.EmbedResponse)
        return np.stack([_vector(result) for response in responses for result in response.results])

    # ---- information about models

    def count_tokens(
        self,
        texts: Sequence[str],
        *,
        text_pairs: Sequence[str] = (),
        prompt_name: str | None = None,
        model: str = "",
    ) -> Steps[pb.CountTokensResponse]:
        """The number of tokens of each text with its prompt, or of each pair, and the model's limit."""

        def request(part: slice) -> pb.CountTokensRequest:
            return pb.CountTokensRequest(
                model=model, inputs=texts[part], text_pairs=text_pairs[part], prompt_name=prompt_name
            )

        first, *others = yield from self._chunked(
            "CountTokens", model, texts, request, pb.CountTokensResponse, pairs=text_pairs
        )
        for other in others:
            first.tokens.extend(other.tokens)
        return first

    def _chunked(
        self,
        method: str,
        model: str,
        inputs: Sequence[InputT],
        request: Callable[[slice], Message],
        response_class: type[ResponseT],
        *,
        pairs: Sequence[str] = (),
    ) -> Steps[Sequence[ResponseT]]:
        """The responses to the calls that have the inputs, in their order. `request` makes a request with some."""
        parts = [slice(0, len(inputs))]
        if len(inputs) > 1 and len(pairs) in (0, len(inputs)):  # the server refuses another number of pairs
            sizes = list(map(size_of, inputs))
            if pairs:
                sizes = [size + size_of(pair) for size, pair in zip(sizes, pairs, strict=True)]
            parts = list(chunks(sizes, (yield from self.limits_of(model))))
        return (
            yield from every(
                [
                    Call(
                        TYPED + method,
                        request(part if len(parts) > 1 else slice(None)),
                        response_class,
                        inputs=part.stop - part.start,
                        first=part.start,
                    )
                    for part in parts
                ]
            )
        )


def _vector(result: pb.Embedding) -> NDArray[np.float32]:
    """The vector of a text, from a server with or without `embedding_bytes`."""
    if result.embedding_bytes:
        return np.frombuffer(result.embedding_bytes, FLOAT32)
    return np.array(result.values, np.float32)
