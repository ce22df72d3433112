"""Metadata and configuration of the server and its models in the Open Inference Protocol."""

from collections.abc import Sequence

from protos import open_inference_pb2 as oip
from server.config.settings import version
from server.repository.model import Model
from server.rpc.model_info import properties
from server.rpc.open_inference.endpoint import Endpoint, Tensor
from server.rpc.open_inference.tensors import BYTES

SERVER = "affinity"
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"  # Triton's names
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "statistics",
    "binary_tensor_data",
    "parameters",
)
MIN_BATCH_SIZE = 8  # perf_analyzer and other clients send no larger batches than max_batch_size


def server_metadata() -> oip.ServerMetadataResponse:
    return oip.ServerMetadataResponse(name=SERVER, version=version(), extensions=EXTENSIONS)


def model_metadata(name: str, versions: Sequence[str], model: Model, endpoint: Endpoint) -> oip.ModelMetadataResponse:
    """`name` is that of the model or of its raw endpoint. Sizes that vary are -1."""
    response = oip.ModelMetadataResponse(name=name, versions=versions, platform=PLATFORM, properties=properties(model))
    for tensor in endpoint.inputs:
        response.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=_declared(tensor))
    for tensor in endpoint.outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return response


def model_config(name: str, model: Model, endpoint: Endpoint, max_batch_size: int) -> oip.ModelConfigResponse:
    """Triton's model configuration: `dims` exclude the batch. Its parameters are the properties of the model."""
    config = oip.ModelConfig(
        name=name, platform=PLATFORM, backend=BACKEND, max_batch_size=max(max_batch_size, MIN_BATCH_SIZE)
    )
    for tensor in endpoint.inputs:
        config.input.add(
            name=tensor.name, data_type=_type(tensor.datatype), dims=_declared(tensor)[1:], optional=tensor.optional
        )
    for tensor in endpoint.outputs:
        config.output.add(name=tensor.name, data_type=_type(tensor.datatype), dims=tensor.shape[1:])
    for key, value in properties(model).items():
        config.parameters[key].string_value = value
    config.model_transaction_policy.decoupled = endpoint.stream is not None
    return oip.ModelConfigResponse(config=config)


def _declared(tensor: Tensor) -> tuple[int, ...]:
    """The shape of an input in metadata: [n, 1] for texts and images, although [n] is accepted, too.

    Triton's clients treat the first size as the batch, and perf_analyzer cannot send inputs without another size.
    """
    return (*tensor.shape, 1) if tensor.datatype == BYTES and len(tensor.shape) == 1 else tensor.shape


def _type(datatype: str) -> oip.DataType.ValueType:
    return oip.DataType.Value("TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}")
