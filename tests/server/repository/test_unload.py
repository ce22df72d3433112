"""A model is unloaded when its requests are computed; how fast their clients read does not matter."""

import asyncio

from protos import affinity_pb2 as pb
from protos.open_inference_pb2 import ModelInferRequest
from server.admission.in_flight import InFlight
from server.config.settings import Settings
from server.observability.prometheus import Metrics
from server.rpc.affinity.servicer import AffinityService
from server.rpc.open_inference.servicer import OpenInferenceService
from tests.server.conftest import opened


class Context:
    """The context of a call without a deadline or metadata."""

    def time_remaining(self):
        return None

    def invocation_metadata(self):
        return ()


def infer_request(model, text):
    request = ModelInferRequest(model_name=model)
    tensor = request.inputs.add(name="text", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(text)
    return request


async def test_a_slow_reader_of_generated_text_does_not_hold_up_an_unload(artifacts):
    async with opened(artifacts, "tiny-gpt") as repository:
        request = pb.GenerateRequest(prompts=[pb.Prompt(text="A list")], max_tokens=20)
        responses = AffinityService(repository, Metrics()).Generate(request, Context())
        received = [await anext(responses)]
        model = repository.get("tiny-gpt")
        await repository.unload("tiny-gpt")  # hangs if the reader counts as a request in flight
        assert model.in_flight.count == 0
        received += [response async for response in responses]
        assert received[-1].finish_reason == "length"
        assert sum(len(response.token_ids) for response in received) == 20


async def test_a_slow_reader_of_a_stream_of_inferences_does_not_hold_up_an_unload(artifacts):
    async def requests():
        yield infer_request("tiny-bert", b"a [MASK]")
        await asyncio.Event().wait()  # the client keeps the stream open

    async with opened(artifacts, "tiny-bert") as repository:
        service = OpenInferenceService(Settings(), repository, Metrics(), InFlight("stopping"))
        responses = service.ModelStreamInfer(requests(), Context())
        assert not (await anext(responses)).error_message
        await repository.unload("tiny-bert")
        await responses.aclose()
