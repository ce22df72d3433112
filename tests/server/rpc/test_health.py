"""Health of the server, its services and its models; reflection."""

from types import SimpleNamespace

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from server.errors import ModelNotFound
from server.rpc.health import Health

SERVING, NOT_SERVING, UNKNOWN = 1, 2, 3


class Models:
    """A repository as far as health looks at it."""

    def __init__(self, *names, ready=True):
        self.there, self.ready, self.known = list(names), ready, list(names)

    def models(self):
        return [SimpleNamespace(name=name) for name in self.there]

    def names(self):
        return self.known


async def check(health, service=""):
    return (await health.Check(HealthCheckRequest(service=service), None)).status


def watch(health, service=""):
    return health.Watch(HealthCheckRequest(service=service), None)


async def test_nothing_serves_before_the_models_are_loaded():
    models = Models(ready=False)
    health = Health()
    await health.refresh(models)
    assert await check(health) == NOT_SERVING
    models.ready = True
    await health.refresh(models)
    assert await check(health) == await check(health, "inference.GRPCInferenceService") == SERVING


async def test_an_unloaded_model_does_not_serve():
    models = Models("bert", "vit")
    health = Health()
    await health.refresh(models)
    assert await check(health, "model/bert") == SERVING
    models.there.remove("bert")
    await health.refresh(models)
    assert await check(health, "model/bert") == NOT_SERVING
    assert await check(health, "model/vit") == SERVING
    with pytest.raises(ModelNotFound, match="model/gpt"):
        await check(health, "model/gpt")


async def test_a_watcher_that_disconnects_does_not_affect_others():
    models, health = Models("bert"), Health()
    await health.refresh(models)
    leaves, stays = watch(health), watch(health)
    assert (await anext(leaves)).status == (await anext(stays)).status == SERVING
    await leaves.aclose()
    await health.stop()
    assert (await anext(stays)).status == NOT_SERVING


async def test_a_watcher_of_an_unknown_model_is_notified_when_it_is_loaded():
    models = Models()
    health = Health()
    watcher = watch(health, "model/bert")
    assert (await anext(watcher)).status == UNKNOWN
    models.there.append("bert")
    await health.refresh(models)
    assert (await anext(watcher)).status == SERVING


async def test_nothing_serves_again_once_it_stops():
    models, health = Models("bert"), Health()
    await health.stop()
    await health.refresh(models)
    assert await check(health) == await check(health, "model/bert") == NOT_SERVING


# ---- on a real server


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.mark.parametrize("service", ["", "inference.GRPCInferenceService", "affinity.v1.Affinity", "model/tiny-vit"])
def test_a_real_server_serves(channel, service):
    assert HealthStub(channel).Check(HealthCheckRequest(service=service)).status == HealthCheckResponse.SERVING


def test_an_unknown_service_is_not_found(channel):
    with pytest.raises(grpc.RpcError) as error:
        HealthStub(channel).Check(HealthCheckRequest(service="missing"))
    assert error.value.code() is grpc.StatusCode.NOT_FOUND


def test_reflection_shows_the_services_with_their_messages(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    assert set(database.get_services()) >= {
        "affinity.v1.Affinity",
        "grpc.health.v1.Health",
        "inference.GRPCInferenceService",
    }
    pool = DescriptorPool(database)
    service = pool.FindServiceByName("inference.GRPCInferenceService")
    stream = service.methods_by_name["ModelStreamInfer"]
    assert stream.client_streaming
    assert stream.server_streaming
    assert stream.input_type.full_name == "inference.ModelInferRequest"
    outputs = pool.FindMessageTypeByName("inference.ModelInferResponse").fields_by_name["outputs"]
    assert outputs.message_type.full_name == "inference.ModelInferResponse.InferOutputTensor"
    assert pool.FindServiceByName("affinity.v1.Affinity").methods_by_name["Generate"].server_streaming
