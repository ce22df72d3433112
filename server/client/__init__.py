"""A small synchronous client of the server. `python -m server.client` is its command line.

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
    """One model as the server lists it. `task`, `provider` and `precision` are empty unless the model is ready."""

    name: str
    version: str
    state: str
    reason: str = ""
    task: str = ""
    provider: str = ""
    precision: str = ""


class CallFailed(Exception):
    """A call that failed. The text is the server's error message, `code` is the gRPC status code."""

    def __init__(self, code: grpc.StatusCode, text: str) -> None:
        super().__init__(text)
        self.code = code


class Unreachable(CallFailed):
    """No server accepts connections at the address."""


class Client:
    """A connection to one server.

    Calls that name no model use the first model, in alphabetical order, that serves the task.
    """

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
        """The most probable tokens for each mask of each text; only tokens of `targets` if that is given."""
        model = model or self.choose("fill-mask")
        request = pb.FillMaskRequest(model=model, inputs=texts, top_k=top_k, targets=targets, truncate=truncate)
        with self._errors():
            return list(self._stub.FillMask(request, timeout=self._timeout_s).results)

    def generate(self, prompt: str, *, model: str = "", **sampling: Any) -> Iterator[pb.GenerateResponse]:
        """Yield parts of the generated text. `sampling`: fields of GenerateRequest, such as max_tokens."""
        model = model or self.choose("generate")
        request = pb.GenerateRequest(model=model, prompts=[pb.Prompt(text=prompt)], **sampling)
        with self._errors():
            yield from self._stub.Generate(request, timeout=self._timeout_s)

    def classify_image(
        self, images: Sequence[bytes], *, model: str = "", top_k: int | None = None, function_to_apply: str = ""
    ) -> list[pb.Classification]:
        """The most probable classes of each image. `images` are JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF files.

        `function_to_apply` turns logits into scores: softmax, sigmoid or none; empty for the model's own function.
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
        """The most probable classes of each text, or of each pair of texts; all classes if `top_k` is None."""
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
        """One vector for each text. `normalize` scales vectors to length 1; None does what the model does by default.

        `prompt_name` selects the prompt that precedes each text: None for the model's default prompt, "" for no prompt.
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
            return [list(result.values) for result in self._stub.Embed(request, timeout=self._timeout_s).results]

    # ---- information about models

    def count_tokens(
        self,
        texts: Sequence[str],
        *,
        text_pairs: Sequence[str] = (),
        prompt_name: str | None = None,
        model: str = "",
    ) -> pb.CountTokensResponse:
        """The number of tokens of each text with its prompt, or of each pair, and the model's limit."""
        request = pb.CountTokensRequest(model=model, inputs=texts, text_pairs=text_pairs, prompt_name=prompt_name)
        with self._errors():
            response: pb.CountTokensResponse = self._stub.CountTokens(request, timeout=self._timeout_s)
            return response

    def info(self, model: str = "") -> pb.ModelInfoResponse:
        """The task, limits and labels of a model."""
        request = pb.ModelInfoRequest(model=model)
        with self._errors():
            response: pb.ModelInfoResponse = self._stub.ModelInfo(request, timeout=self._timeout_s)
            return response

    # ---- the server

    def models(self) -> list[ServedModel]:
        """The models of the server, sorted by name and version."""
        index = self._call(
            OPEN_INFERENCE + "RepositoryIndex", oip.RepositoryIndexRequest(), oip.RepositoryIndexResponse
        )
        return sorted((self._model(entry) for entry in index.models), key=lambda model: (model.name, model.version))

    def choose(self, task: str) -> str:
        """The model for a call that names none. Empty if no model serves the task; the server then reports that."""
        return next(iter(self.candidates(task)), "")

    def candidates(self, task: str) -> list[str]:
        """The names of the models that serve a task. Only the first call contacts the server."""
        if not self._by_task:
            for model in self.models():
                names = self._by_task.setdefault(model.task, [])
                if model.name not in names:
                    names.append(model.name)
        return self._by_task.get(task, [])

    def health(self, service: str = "") -> str:
        """SERVING or NOT_SERVING, for the server or for one service such as `model/<name>`."""
        request = health_pb2.HealthCheckRequest(service=service)
        response = self._call(HEALTH, request, health_pb2.HealthCheckResponse)
        return str(health_pb2.HealthCheckResponse.ServingStatus.Name(response.status))

    def _model(self, entry: oip.RepositoryIndexResponse.ModelIndex) -> ServedModel:
        model = ServedModel(entry.name, entry.version, entry.state, entry.reason)
        if entry.state != READY:
            return model
        request = oip.ModelConfigRequest(name=entry.name, version=entry.version)
        config = self._call(OPEN_INFERENCE + "ModelConfig", request, oip.ModelConfigResponse).config
        return replace(model, **{key: config.parameters[key].string_value for key in ("task", "provider", "precision")})

    def _call(self, path: str, request: Message, response_class: Any) -> Any:
        call: Any = self._channel.unary_unary(
            path,
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response_class.FromString,
        )
        with self._errors():
            return call(request, timeout=self._timeout_s)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as error:
            code, text = error.code(), error.details() or ""
            if code is grpc.StatusCode.UNAVAILABLE and any(message in text for message in UNREACHABLE):
                raise Unreachable(code, f"no server answers at {self.server}") from error
            raise CallFailed(code, text) from error
