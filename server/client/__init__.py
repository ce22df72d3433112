"""A client of the server: a small synchronous library. `python -m server.client` is its command line.

with Client("127.0.0.1:8001") as client:
    for candidate in client.fill_mask(["The [MASK] statement raises an exception."])[0].masks[0].candidates:
        print(candidate.token_str, candidate.score)
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from protos.affinity_pb2_grpc import AffinityStub

DEFAULT_SERVER = "127.0.0.1:8001"
OPEN_INFERENCE = "/inference.GRPCInferenceService/"
HEALTH = "/grpc.health.v1.Health/Check"
UNLIMITED = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
READY = "READY"
UNREACHABLE = ("failed to connect", "DNS resolution failed", "Connection refused", "Socket closed")


@dataclass(frozen=True)
class ServedModel:
    """One model of the server, as it says itself. `task` and what follows are known of models that are ready."""

    name: str
    version: str
    state: str
    reason: str = ""
    task: str = ""
    provider: str = ""
    precision: str = ""


class CallFailed(Exception):
    """A call that the server refused or could not answer. The text is the server's, `code` is gRPC's."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Unreachable(CallFailed):
    """No server at that address."""


class Client:
    """Calls one server. Without a model's name, a call takes the first, by name, of those that do the task."""

    def __init__(self, server: str = DEFAULT_SERVER, *, timeout_s: float = 60.0) -> None:
        self.server = server
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(server, options=UNLIMITED)
        self._stub = AffinityStub(self._channel)
        self._by_task: dict[str, list[str]] = {}

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._channel.close()

    # ---- the tasks

    def fill_mask(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        top_k: int | None = None,
        targets: Sequence[str] = (),
        truncate: bool = False,
    ) -> list[pb.FilledText]:
        """The likeliest words, or the likeliest of `targets`, for each mask of each text."""
        model = model or self.choose("fill-mask")
        request = pb.FillMaskRequest(model=model, inputs=texts, top_k=top_k, targets=targets, truncate=truncate)
        with self._errors():
            return list(self._stub.FillMask(request, timeout=self._timeout_s).results)

    def generate(self, prompt: str, *, model: str = "", **sampling: Any) -> Iterator[pb.GenerateResponse]:
        """Pieces of the continuation as they come. `sampling`: fields of GenerateRequest, such as max_tokens."""
        model = model or self.choose("generate")
        request = pb.GenerateRequest(model=model, prompts=[pb.Prompt(text=prompt)], **sampling)
        with self._errors():
            yield from self._stub.Generate(request, timeout=self._timeout_s)

    def classify_image(
        self, images: Sequence[bytes], *, model: str = "", top_k: int | None = None, function_to_apply: str = ""
    ) -> list[pb.Classification]:
        """The likeliest classes of each image: contents of JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF files.

        `function_to_apply` makes scores of logits: softmax, sigmoid, none; the model's own if empty.
        """
        model = model or self.choose("classify-image")
        request = pb.ClassifyImageRequest(model=model, images=images, top_k=top_k, function_to_apply=function_to_apply)
        with self._errors():
            return list(self._stub.ClassifyImage(request, timeout=self._timeout_s).results)

    def classify_text(
        self,
        texts: Sequence[str],
        *,
        text_pairs: Sequence[str] = (),
        model: str = "",
        top_k: int | None = None,
        function_to_apply: str = "",
        truncate: bool = False,
    ) -> list[pb.Classification]:
        """The likeliest classes of each text, or of each with its pair; all of them without a `top_k`."""
        request = pb.ClassifyTextRequest(
            model=model or self.choose("classify-text"),
            inputs=texts,
            text_pairs=text_pairs,
            top_k=top_k,
            function_to_apply=function_to_apply,
            truncate=truncate,
        )
        with self._errors():
            return list(self._stub.ClassifyText(request, timeout=self._timeout_s).results)

    def embed(
        self,
        texts: Sequence[str],
        *,
        model: str = "",
        normalize: bool | None = None,
        dimensions: int | None = None,
        prompt_name: str | None = None,
        truncate: bool = False,
    ) -> list[list[float]]:
        """One vector for each text, of length 1 or not as the model has it, or as `normalize` says.

        `prompt_name` names a prompt of the model to put before each text: its default prompt if None, no prompt if "".
        """
        model = model or self.choose("embed")
        request = pb.EmbedRequest(
            model=model,
            inputs=texts,
            normalize=normalize,
            dimensions=dimensions,
            prompt_name=prompt_name,
            truncate=truncate,
        )
        with self._errors():
            return [list(each.values) for each in self._stub.Embed(request, timeout=self._timeout_s).results]

    # ---- what can be known beforehand

    def count_tokens(
        self,
        texts: Sequence[str],
        *,
        text_pairs: Sequence[str] = (),
        prompt_name: str | None = None,
        model: str = "",
    ) -> pb.CountTokensResponse:
        """How many tokens each text with its prompt, or pair, is for a model, and how many the model takes."""
        request = pb.CountTokensRequest(model=model, inputs=texts, text_pairs=text_pairs, prompt_name=prompt_name)
        with self._errors():
            answer: pb.CountTokensResponse = self._stub.CountTokens(request, timeout=self._timeout_s)
            return answer

    def info(self, model: str = "") -> pb.ModelInfoResponse:
        """What a model does and takes: its task, limits and labels."""
        with self._errors():
            answer: pb.ModelInfoResponse = self._stub.ModelInfo(
                pb.ModelInfoRequest(model=model), timeout=self._timeout_s
            )
            return answer

    # ---- the server

    def models(self) -> list[ServedModel]:
        """What the server has, by name."""
        index = self._call(
            OPEN_INFERENCE + "RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse
        )
        return sorted((self._model(entry) for entry in index.models), key=lambda model: (model.name, model.version))

    def choose(self, task: str) -> str:
        """The model that a call without a name takes; empty if the server has none, so that it says so itself."""
        return next(iter(self.candidates(task)), "")

    def candidates(self, task: str) -> list[str]:
        """The names of the models that do a task. The server is asked once."""
        if not self._by_task:
            for model in self.models():
                names = self._by_task.setdefault(model.task, [])
                if model.name not in names:
                    names.append(model.name)
        return self._by_task.get(task, [])

    def health(self, service: str = "") -> str:
        """SERVING or NOT_SERVING, of the server or of one service: `model/<name>`, for instance."""
        request = health_pb2.HealthCheckRequest(service=service)
        answer = self._call(HEALTH, request, health_pb2.HealthCheckResponse)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))

    def _model(self, entry: oip.RepositoryIndexResponse.ModelIndex) -> ServedModel:
        found = ServedModel(entry.name, entry.version, entry.state, entry.reason)
        if entry.state != READY:
            return found
        request = oip.ModelConfigRequest(name=entry.name, version=entry.version)
        config = self._call(OPEN_INFERENCE + "ModelConfig", request, oip.ModelConfigResponse).config
        return replace(found, **{key: config.parameters[key].string_value for key in ("task", "provider", "precision")})

    def _call(self, path: str, request: Message, response: Any) -> Any:
        call: Any = self._channel.unary_unary(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )
        with self._errors():
            return call(request, timeout=self._timeout_s)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE and any(sign in text for sign in UNREACHABLE):
                raise Unreachable(code, f"no server answers at {self.server}") from error
            raise CallFailed(code, text) from error
