"""grpc.reflection, with which tools such as grpcurl list the services and their messages."""

from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection

from protos import affinity_pb2, open_inference_pb2
from server.rpc.open_inference.servicer import METHODS, STREAM
from server.rpc.services import HEALTH, OPEN_INFERENCE, REFLECTION, TYPED


def enable_reflection(server: Any) -> None:
    """Add reflection to a server. Its descriptor pool has the Open Inference Protocol in the public package."""
    services = (OPEN_INFERENCE, TYPED, HEALTH, REFLECTION)
    reflection.enable_server_reflection(services, server, pool=descriptors())


def descriptors() -> DescriptorPool:
    """The descriptors of all services."""
    pool = DescriptorPool()
    for file in (affinity_pb2, health_pb2, reflection._reflection_pb2):
        descriptor = descriptor_pb2.FileDescriptorProto()
        file.DESCRIPTOR.CopyToProto(descriptor)
        pool.Add(descriptor)
    pool.Add(_public_open_inference())
    return pool


def _public_open_inference() -> descriptor_pb2.FileDescriptorProto:
    """The protocol's messages in its own package, `inference`, and its service."""
    package, _, service_name = OPEN_INFERENCE.rpartition(".")
    file = descriptor_pb2.FileDescriptorProto.FromString(open_inference_pb2.DESCRIPTOR.serialized_pb)
    _rename(file, f".{file.package}.", f".{package}.")
    file.name, file.package = "grpc_service.proto", package
    service = file.service.add(name=service_name)
    for method in METHODS:
        streams = method == STREAM
        request = "ModelInfer" if streams else method
        service.method.add(
            name=method,
            input_type=f".{package}.{request}Request",
            output_type=f".{package}.{method}Response",
            client_streaming=streams,
            server_streaming=streams,
        )
    return file


def _rename(file: descriptor_pb2.FileDescriptorProto, old: str, new: str) -> None:
    """Replace the package `old` by `new` in every reference to a message."""
    messages = list(file.message_type)
    while messages:
        message = messages.pop()
        messages.extend(message.nested_type)
        for field in message.field:
            if field.type_name.startswith(old):
                field.type_name = new + field.type_name.removeprefix(old)
