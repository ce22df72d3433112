"""KServe's SDK: every case through its gRPC client. Run as `python -m tests.clients.kserve_sdk HOST:PORT`."""

import asyncio
import base64
import json
import sys
from collections.abc import Iterator

import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import RequestedOutput

from tests.clients.cases import CASES, plain

DATATYPES = {"i": "INT64", "f": "FP32", "O": "BYTES"}


def encoded(name: str, values: list | np.ndarray) -> Iterator[tuple[str, InferInput]]:
    """The same tensor in each way in which the SDK sends one."""
    array = values if isinstance(values, np.ndarray) else np.array(values, object)
    datatype = DATATYPES[array.dtype.kind]
    raw = InferInput(name, list(array.shape), datatype)
    raw.set_data_from_numpy(array)
    yield "raw", raw
    yield "array", InferInput(name, list(array.shape), datatype, data=array)
    yield "list", InferInput(name, list(array.shape), datatype, data=array.ravel().tolist())
    if datatype == "BYTES" and all(isinstance(value, str) for value in values):
        text = InferInput(name, list(array.shape), datatype)
        text.set_data_from_numpy(array, binary_data=False)
        yield "text", text
        column = InferInput(name, [len(values), 1], datatype, parameters={"content_type": "str"})
        column.set_data_from_numpy(array[:, None])
        yield "column", column


async def main(target: str) -> None:
    answers: dict[str, dict] = {}
    async with InferenceGRPCClient(target) as client:
        assert await client.is_server_live()
        assert await client.is_server_ready()
        for case, (model, tensors, parameters, outputs) in CASES.items():
            assert await client.is_model_ready(model)
            ways = [dict(encoded(name, values)) for name, values in tensors.items()]
            for way in ways[0]:
                request = InferRequest(
                    model,
                    [inputs[way] for inputs in ways],
                    request_id=case,
                    parameters={**parameters, "binary_data_output": True},
                    request_outputs=[RequestedOutput(name, {"binary_data": True}) for name in outputs],
                )
                message = request.to_grpc()
                response = await client.infer(request)
                found = {output.name: plain(output.as_numpy()) for output in response.outputs}
                sent = base64.b64encode(message.SerializeToString()).decode()
                answers[f"{case}, {way}"] = {"outputs": found, "request": sent}
    print(json.dumps(answers))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
