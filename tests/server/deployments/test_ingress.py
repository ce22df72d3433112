"""The ingress before real replicas of two models, in one process: how Ray Serve calls them, without Ray."""

import asyncio
import shutil
from dataclasses import dataclass, field

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from prometheus_client import CollectorRegistry

from protos import affinity_pb2 as pb
from protos import open_inference_pb2 as oip
from server.config.settings import Settings
from server.deployments.ingress import Ingress
from server.deployments.metrics import copy_samples
from server.deployments.proxy import TIME_REMAINING
from server.deployments.replica import ModelReplica
from server.errors import ModelNotFound, NotReady
from server.status import DETAILS
from tests.artifacts import next_version

TASKS = {"tiny-bert": "fill-mask", "tiny-gpt": "generate"}
TEXT = "A [MASK] is a list."

pytestmark = pytest.mark.asyncio(loop_scope="module")


@dataclass
class Context:
    """The context of a call, as Ray Serve gives it to the ingress."""

    metadata: list[tuple[str, str]] = field(default_factory=list)
    code: grpc.StatusCode | None = None
    details: str = ""
    trailers: list[tuple[str, str | bytes]] = field(default_factory=list)

    def invocation_metadata(self):
        return self.metadata

    def peer(self):
        return "ipv4:127.0.0.1:50000"

    def set_code(self, code):
        self.code = code

    def set_details(self, details):
        self.details = details

    def set_trailing_metadata(self, trailing_metadata):
        self.trailers = trailing_metadata


@pytest.fixture(scope="module")
def root(artifacts, tmp_path_factory):
    root = tmp_path_factory.mktemp("deployed")
    for name in TASKS:
        shutil.copytree(artifacts / name, root / name)
    return root


async def keep_nothing(registry: CollectorRegistry) -> None:
    """Does not export metrics."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replicas(root):
    found = {}
    for name in TASKS:
        settings = Settings(artifacts=root, models=(name,), provider="cpu", threads=1, tune="off")
        found[name] = ModelReplica(settings, keep_nothing)
        with pytest.raises(NotReady):
            found[name].check_health()
        await found[name].reconfigure({"versions": "1"})
        found[name].check_health()
    return found


@pytest.fixture(scope="module")
def ingress(replicas):
    return Ingress(replicas, TASKS)


async def call(ingress, method, request, response_class, **context):
    """The response, or the context of a failed call."""
    context = Context(**context)
    response = await getattr(ingress, method)(request.SerializeToString(), context)
    return response_class.FromString(response.SerializeToString()) if context.code is None else context


async def fill(ingress, **fields):
    return await call(ingress, "FillMask", pb.FillMaskRequest(inputs=[TEXT], **fields), pb.FillMaskResponse)


@pytest.mark.parametrize("model", ["tiny-bert", ""])
async def test_a_call_reaches_its_model(ingress, model):
    response = await fill(ingress, model=model)
    assert (response.model, len(response.results)) == ("tiny-bert", 1)


@pytest.mark.parametrize(
    ("model", "code", "text"),
    [
        (
            "other",
            grpc.StatusCode.NOT_FOUND,
            "found 'other', expected one of those that are served: tiny-bert, ",
        ),
        ("tiny-gpt", grpc.StatusCode.FAILED_PRECONDITION, "found task generate, expected fill-mask"),
    ],
)
async def test_errors_have_the_status_and_the_details_of_the_server(ingress, model, code, text):
    failed = await fill(ingress, model=model)
    assert failed.code is code
    assert text in failed.details
    assert DETAILS in dict(failed.trailers)


async def test_a_method_of_several_models_needs_a_name(ingress):
    failed = await call(ingress, "ModelInfo", pb.ModelInfoRequest(), pb.ModelInfoResponse)
    assert failed.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "one of tiny-bert, tiny-gpt" in failed.details
    failed = await call(ingress, "Embed", pb.EmbedRequest(), pb.EmbedResponse)
    assert failed.details == "model: no served model has the task embed"


async def test_bytes_that_cannot_be_parsed_are_refused(ingress):
    context = Context()
    await ingress.FillMask(b"\xff\xff\xff", context)
    assert context.code is grpc.StatusCode.INVALID_ARGUMENT
    assert "bytes that cannot be parsed" in context.details


async def test_an_expired_call_does_not_run(ingress):
    request = pb.FillMaskRequest(inputs=[TEXT])
    failed = await call(ingress, "FillMask", request, None, metadata=[(TIME_REMAINING, "0")])
    assert failed.code is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_generate_streams(ingress):
    request = pb.GenerateRequest(prompts=[pb.Prompt(text="A list is")], max_tokens=6, ignore_eos=True)
    context = Context()
    responses = [
        pb.GenerateResponse.FromString(response.SerializeToString())
        async for response in ingress.Generate(request.SerializeToString(), context)
    ]
    assert context.code is None
    assert sum(len(response.token_ids) for response in responses) == 6


async def test_an_error_of_generate_is_the_last_response(ingress):
    request = pb.GenerateRequest(prompts=[pb.Prompt(text="A list is")], temperature=-1)
    context = Context()
    [last] = [response async for response in ingress.Generate(request.SerializeToString(), context)]
    assert (context.code, last.SerializeToString()) == (grpc.StatusCode.INVALID_ARGUMENT, b"")


async def test_a_stream_that_is_closed_ends_its_generation(ingress, replicas):
    request = pb.GenerateRequest(prompts=[pb.Prompt(text="A list is")], max_tokens=100, ignore_eos=True)
    responses = ingress.Generate(request.SerializeToString(), Context())
    await anext(responses)
    await responses.aclose()
    [model] = replicas["tiny-gpt"]._repository.models()
    async with asyncio.timeout(30):
        while model.backend.running_inputs:
            await asyncio.sleep(0.01)


def text_request(model, name, text, **parameters):
    request = oip.ModelInferRequest(model_name=model, id=model)
    request.inputs.add(name=name, datatype="BYTES", shape=[1]).contents.bytes_contents.append(text.encode())
    for key, value in parameters.items():
        request.parameters[key].int64_param = value
    return request


async def infer_each(ingress, *requests, **context):
    """The responses to the requests on one stream, and the context of the call."""

    async def messages():
        for request in requests:
            yield request.SerializeToString()

    context = Context(**context)
    responses = [response.SerializeToString() async for response in ingress.ModelStreamInfer(messages(), context)]
    return [oip.ModelStreamInferResponse.FromString(response) for response in responses], context


async def test_one_stream_has_requests_of_several_models(ingress):
    responses, context = await infer_each(
        ingress,
        text_request("tiny-gpt", "text_input", "A list is", max_tokens=4),
        text_request("tiny-bert", "text", TEXT),
    )
    assert context.code is None
    assert not [response.error_message for response in responses if response.error_message]
    finished = [
        response.infer_response.id
        for response in responses
        if response.infer_response.parameters["triton_final_response"].bool_param
    ]
    assert sorted(finished) == ["tiny-bert", "tiny-gpt"]


async def test_an_error_on_a_stream_is_a_message_unless_the_client_wants_it_to_end_the_stream(ingress):
    requests = [text_request("other", "text", TEXT), text_request("tiny-bert", "text", TEXT)]
    [failed, answer], context = await infer_each(ingress, *requests)
    assert (failed.infer_response.id, answer.infer_response.id) == ("other", "tiny-bert")
    assert "found 'other'" in failed.error_message
    assert context.code is None
    _, context = await infer_each(ingress, *requests, metadata=[("triton_grpc_error", "true")])
    assert context.code is grpc.StatusCode.NOT_FOUND


async def test_raw_models_and_statistics_go_to_the_replica(ingress):
    request = oip.ModelMetadataRequest(name="tiny-bert.raw")
    response = await call(ingress, "ModelMetadata", request, oip.ModelMetadataResponse)
    assert response.name == "tiny-bert.raw"
    response = await call(ingress, "ModelStatistics", oip.ModelStatisticsRequest(), oip.ModelStatisticsResponse)
    assert sorted(each.name for each in response.model_stats) == sorted(TASKS)


async def test_the_index_has_every_model_once(ingress):
    response = await call(
        ingress, "RepositoryIndex", oip.RepositoryIndexRequest(ready=True), oip.RepositoryIndexResponse
    )
    assert [model.name for model in response.models] == ["tiny-bert", "tiny-gpt"]


async def test_readiness(ingress):
    ready = await call(ingress, "ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse)
    assert ready.ready
    for name, expected in (("tiny-bert", True), ("other", False)):
        ready = await call(ingress, "ModelReady", oip.ModelReadyRequest(name=name), oip.ModelReadyResponse)
        assert ready.ready is expected
    for service in ("", "affinity.v1.Affinity", "model/tiny-gpt"):
        health = await call(ingress, "Check", HealthCheckRequest(service=service), HealthCheckResponse)
        assert health.status == HealthCheckResponse.SERVING
    assert (await call(ingress, "Check", HealthCheckRequest(service="x"), None)).code is grpc.StatusCode.NOT_FOUND


class Ended:
    """A model whose replica ended during the call."""

    async def unary(self, call, message):
        raise NotReady("ended")

    async def stream(self, call, message):
        raise NotReady("ended")
        yield


async def test_a_replica_that_ended_is_unavailable(replicas):
    ingress = Ingress({**replicas, "tiny-bert": Ended()}, TASKS)
    assert (await fill(ingress)).code is grpc.StatusCode.UNAVAILABLE
    ready = await call(ingress, "ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse)
    assert not ready.ready
    health = await call(ingress, "Check", HealthCheckRequest(), HealthCheckResponse)
    assert health.status == HealthCheckResponse.NOT_SERVING


async def test_another_version_replaces_the_first(ingress, replicas, root):
    with pytest.raises(ModelNotFound):
        await replicas["tiny-bert"].reconfigure({"versions": "2"})
    assert (await fill(ingress)).model_version == "1"
    next_version(root, "tiny-bert")
    await replicas["tiny-bert"].reconfigure({"versions": "2"})
    assert (await fill(ingress)).model_version == "2"


class Gauge:
    """A gauge of Ray."""

    all: dict[str, "Gauge"] = {}

    def __init__(self, name, *, description, tag_keys):
        self.tag_keys, self.values = tag_keys, {}
        self.all[name] = self

    def set(self, value, tags):
        assert tuple(tags) == self.tag_keys
        self.values[tuple(tags.values())] = value


async def test_all_metrics_are_copied(ingress, replicas):
    await fill(ingress)
    copy_samples(replicas["tiny-bert"]._metrics.registry, Gauge, {})
    assert any(value >= 1 for value in Gauge.all["affinity_requests_total"].values.values())
    assert "le" in Gauge.all["affinity_run_duration_seconds_bucket"].tag_keys
    assert "affinity_queue_rows" in Gauge.all
    assert "nv_inference_request_success" in Gauge.all
    assert "grpc_server_handled_total" in Gauge.all
