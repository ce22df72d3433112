"""MLServer's codecs: every case over gRPC. Run as `python -m tests.clients.mlserver_codecs HOST:PORT`."""

import base64
import json
import sys
from collections.abc import Iterator

import grpc
import numpy as np
import pandas as pd
from mlserver.codecs import Base64Codec, NumpyCodec, PandasCodec, StringCodec
from mlserver.grpc.converters import ModelInferRequestConverter, ModelInferResponseConverter
from mlserver.grpc.dataplane_pb2_grpc import GRPCInferenceServiceStub
from mlserver.types import InferenceRequest, Parameters, RequestInput, RequestOutput, ResponseOutput

from tests.clients.cases import CASES, plain


def encoded(tensors: dict[str, list | np.ndarray]) -> Iterator[tuple[str, list[RequestInput], str | None]]:
    """The tensors in each way in which the codecs encode them, and the content type of the request."""
    first = next(iter(tensors.values()))
    if isinstance(first, np.ndarray):
        yield "numpy", [NumpyCodec.encode_input(name, values) for name, values in tensors.items()], None
        return
    files = {name: [v if isinstance(v, bytes) else v.encode() for v in values] for name, values in tensors.items()}
    yield "base64", [Base64Codec.encode_input(name, values) for name, values in files.items()], None
    if isinstance(first[0], bytes):
        return
    yield "text", [StringCodec.encode_input(name, values) for name, values in tensors.items()], None
    yield "text of a request", [StringCodec.encode_input(name, values) for name, values in tensors.items()], "str"
    yield "numpy of text", [NumpyCodec.encode_input(name, np.array(values)) for name, values in tensors.items()], "np"
    frame = PandasCodec.encode_request(pd.DataFrame(tensors, dtype=object))
    yield "data frame", frame.inputs, frame.parameters.content_type


def decoded(output: ResponseOutput) -> list:
    codec = StringCodec if output.datatype == "BYTES" else NumpyCodec
    return plain(codec.decode_output(output))


def main(target: str) -> None:
    answers: dict[str, dict] = {}
    with grpc.insecure_channel(target) as channel:
        stub = GRPCInferenceServiceStub(channel)
        for case, (model, tensors, parameters, outputs) in CASES.items():
            for way, inputs, content_type in encoded(tensors):
                request = InferenceRequest(
                    id=case,
                    inputs=inputs,
                    outputs=[RequestOutput(name=name) for name in outputs],
                    parameters=Parameters(content_type=content_type, **parameters),
                )
                for use_raw in (False, True):
                    message = ModelInferRequestConverter.from_types(request, model, "1", use_raw=use_raw)
                    response = ModelInferResponseConverter.to_types(stub.ModelInfer(message, timeout=60))
                    found = {output.name: decoded(output) for output in response.outputs}
                    sent = base64.b64encode(message.SerializeToString()).decode()
                    answers[f"{case}, {way}{', raw' * use_raw}"] = {"outputs": found, "request": sent}
    print(json.dumps(answers))


if __name__ == "__main__":
    main(sys.argv[1])
