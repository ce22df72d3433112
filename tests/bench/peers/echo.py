"""A bare grpc.aio server, which reads each request and answers with a response that was recorded elsewhere.

Asked with `method` and `response` (in base64), it registers a response; asked with nothing, it answers its port. What
it costs is what gRPC for Python costs: a server cannot be faster and still have messages as objects.
"""

import asyncio
import base64
import threading
from typing import Any

from tests.bench.peers import answering


def open_peer() -> answering.Work:
    import grpc
    import uvloop
    from google.protobuf.message import Message

    from protos import affinity_pb2, open_inference_pb2

    methods: dict[str, tuple[type[Message], type[Message]]] = {
        "/affinity.v1.Affinity/FillMask": (affinity_pb2.FillMaskRequest, affinity_pb2.FillMaskResponse),
        "/affinity.v1.Affinity/ClassifyImage": (affinity_pb2.ClassifyImageRequest, affinity_pb2.ClassifyResponse),
        "/inference.GRPCInferenceService/ModelInfer": (
            open_inference_pb2.ModelInferRequest,
            open_inference_pb2.ModelInferResponse,
        ),
    }
    responses: dict[str, Message] = {}

    class Echo(grpc.GenericRpcHandler):
        def __init__(self) -> None:
            self._handlers = {path: self._handler(path, *types) for path, types in methods.items()}

        def service(self, call: grpc.HandlerCallDetails) -> Any:
            return self._handlers.get(str(call.method))

        def _handler(self, path: str, request_type: type[Message], response_type: type[Message]) -> Any:
            async def respond(request: Message, context: object) -> Message:
                return responses[path]

            return grpc.unary_unary_rpc_method_handler(
                respond,
                request_deserializer=request_type.FromString,
                response_serializer=response_type.SerializeToString,
            )

    ports: list[int] = []
    started = threading.Event()

    async def serve() -> None:
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((Echo(),))
        ports.append(server.add_insecure_port("127.0.0.1:0"))
        await server.start()
        started.set()
        await server.wait_for_termination()

    def run() -> None:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve())

    threading.Thread(target=run, daemon=True).start()
    started.wait()

    def work(request: dict[str, Any]) -> dict[str, Any]:
        if request:
            response = methods[request["method"]][1].FromString(base64.b64decode(request["response"]))
            responses[request["method"]] = response
        return {"port": ports[0]}

    return work


if __name__ == "__main__":
    answering.answer(open_peer)
