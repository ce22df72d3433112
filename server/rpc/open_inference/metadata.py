"""What the server says about itself and its models over the Open Inference Protocol."""

from collections.abc import Sequence

from protos import open_inference_pb2 as oip
from server.config.settings import version
from server.repository.repository import Model
from server.rpc.model_info import properties
from server.rpc.open_inference.endpoints import Endpoint, Tensor
from server.rpc.open_inference.tensors import BYTES

SERVER = "affinity"
PLATFORM, BACKEND = "onnxruntime_onnx", "onnxruntime"  # as Triton calls them
EXTENSIONS = (
    "classification",
    "model_repository",
    "model_configuration",
    "statistics",
    "binary_tensor_data",
    "parameters",
)
MIN_BATCH_SIZE = 8  # clients like perf_analyzer take it for the largest batch they may send


def server_metadata() -> oip.ServerMetadataResponse:
    return oip.ServerMetadataResponse(name=SERVER, version=version(), extensions=EXTENSIONS)


def model_metadata(name: str, versions: Sequence[str], model: Model, door: Endpoint) -> oip.ModelMetadataResponse:
    """`name` is the model's, or that of its raw door. Shapes hold -1 where a size varies."""
    response = oip.ModelMetadataResponse(name=name, versions=versions, platform=PLATFORM, properties=properties(model))
    for tensor in door.inputs:
        response.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=_declared(tensor))
    for tensor in door.outputs:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
    return response


def model_config(name: str, model: Model, door: Endpoint, max_batch_size: int) -> oip.ModelConfigResponse:
    """As Triton writes it: `dims` leave out the batch. The parameters tell what server/rpc/model_info.py knows."""
    config = oip.ModelConfig(
        name=name, platform=PLATFORM, backend=BACKEND, max_batch_size=max(max_batch_size, MIN_BATCH_SIZE)
    )
    for tensor in door.inputs:
        config.input.add(
            name=tensor.name, data_type=_type(tensor.datatype), dims=_declared(tensor)[1:], optional=tensor.optional
        )
    for tensor in door.outputs:
        config.output.add(name=tensor.name, data_type=_type(tensor.datatype), dims=tensor.shape[1:])
    for key, value in properties(model).items():
        config.parameters[key].string_value = value
    config.model_transaction_policy.decoupled = door.stream is not None
    return oip.ModelConfigResponse(config=config)


def _declared(tensor: Tensor) -> tuple[int, ...]:
    """The shape of an input as clients are told it: of texts and images [n, 1], where [n] is taken as well.

    Triton's clients take the first size for the batch, and perf_analyzer cannot send what then has no size at all.
    """
    return (*tensor.shape, 1) if tensor.datatype == BYTES and len(tensor.shape) == 1 else tensor.shape


def _type(datatype: str) -> oip.DataType.ValueType:
    return oip.DataType.Value("TYPE_STRING" if datatype == BYTES else f"TYPE_{datatype}")
