"""grpc.reflection: lets grpcurl and the like list the services, with their messages."""

from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from protos import affinity_pb2, open_inference_pb2
from server.rpc.open_inference.servicer import METHODS, STREAM
from server.rpc.services import HEALTH, OPEN_INFERENCE, TYPED


def enable_reflection(server: Any) -> None:
    """Add reflection to a server. It has a pool of its own, where the protocol stands under its public name."""
    services = (OPEN_INFERENCE, TYPED, HEALTH, reflection.SERVICE_NAME)
    reflection.enable_server_reflection(services, server, pool=descriptors())


def descriptors() -> DescriptorPool:
    """The files of all services."""
    pool = DescriptorPool()
    for file in (affinity_pb2, health_pb2, reflection._reflection_pb2):
        described = descriptor_pb2.FileDescriptorProto()
        file.DESCRIPTOR.CopyToProto(described)
        pool.Add(described)
    pool.Add(_public_open_inference())
    return pool


def _public_open_inference() -> descriptor_pb2.FileDescriptorProto:
    """Our messages of the protocol under its own package, `inference`, and the service that they belong to."""
    package, _, service_name = OPEN_INFERENCE.rpartition(".")
    ours = open_inference_pb2.DESCRIPTOR.serialized_pb
    described = descriptor_pb2.FileDescriptorProto.FromString(ours)
    _rename(described, f".{described.package}.", f".{package}.")
    described.name, described.package = "grpc_service.proto", package
    service = described.service.add(name=service_name)
    for method in METHODS:
        streams = method == STREAM
        asked = "ModelInfer" if streams else method
        service.method.add(
            name=method,
            input_type=f".{package}.{asked}Request",
            output_type=f".{package}.{method}Response",
            client_streaming=streams,
            server_streaming=streams,
        )
    return described


def _rename(file: descriptor_pb2.FileDescriptorProto, old: str, new: str) -> None:
    """Make every reference to a message of one package one to another."""
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages.extend(message.nested_type)
        for field in message.field:
            if field.type_name.startswith(old):
                field.type_name = new + field.type_name.removeprefix(old)
