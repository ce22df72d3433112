"""Large work runs in a thread, so that it does not block the event loop; small work runs at once."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from protos.open_inference_pb2 import ModelInferRequest, ModelInferResponse
from server.concurrency.offload import MAX_INLINE_ITEMS, offload
from server.errors import InvalidRequest
from server.rpc.open_inference.endpoint import Endpoint, EndpointResponse, Tensor
from server.rpc.open_inference.infer import count_response_items, write_response
from server.rpc.open_inference.tensors import count_input_items
from server.tasks.classification import MAX_CLASSES, ranked, softmax


@pytest.fixture
def threads():
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize(("items", "here"), [(1, True), (MAX_INLINE_ITEMS, True), (MAX_INLINE_ITEMS + 1, False)])
async def test_large_work_runs_in_a_thread(threads, items, here):
    where = await offload(threads, threading.current_thread, items=items)
    assert (where is threading.current_thread()) == here


@pytest.mark.parametrize(("inputs", "top_k", "here"), [(1, 5, True), (1, 1000, False), (100, 5, False)])
async def test_classes_of_many_inputs_or_many_classes_are_ranked_in_a_thread(threads, inputs, top_k, here):
    ranked_in = []

    def scores(logits):
        ranked_in.append(threading.current_thread())
        return softmax(logits)

    logits = list(np.random.default_rng(0).standard_normal((inputs, 1000), np.float32))
    labels = [f"class {number}" for number in range(1000)]
    found = await ranked(logits, scores, labels, top_k=top_k, threads=threads)
    assert [classes[0].class_id for classes in found] == [row.argmax() for row in logits]
    assert [len(classes) for classes in found] == [top_k] * inputs
    assert {each is threading.current_thread() for each in ranked_in} == {here}


def test_typed_values_and_texts_count_as_items_and_raw_numbers_do_not():
    def items(datatype, shape, raw=(), **contents):
        tensor = ModelInferRequest.InferInputTensor(name="x", datatype=datatype, shape=shape)
        for field, values in contents.items():
            getattr(tensor.contents, field).extend(values)
        return count_input_items(ModelInferRequest(inputs=[tensor], raw_input_contents=raw))

    assert items("FP32", [300], fp32_contents=[0.0] * 300) == 300
    assert items("FP32", [300], raw=[bytes(1200)]) == 0
    assert items("BYTES", [300, 1], raw=[bytes(1200)]) == 300
    assert items("BYTES", [1], bytes_contents=[bytes(100_000)]) == 2


ENDPOINT = Endpoint((), (Tensor("logits", "FP32", (-1, -1), labels=()),), infer=None)


def test_classes_in_a_response_are_counted_and_limited():
    response = EndpointResponse({"logits": np.zeros((600, 500), np.float32)})
    assert count_response_items({"logits": 0}, response) == 600 * 500 * 4 // 1024
    assert count_response_items({"logits": 7}, response) > 600 * 7
    assert write_response(ModelInferResponse(), ENDPOINT, {"logits": 7}, response).outputs[0].shape == [600, 7]
    with pytest.raises(InvalidRequest, match=f"found 300000 classes, expected at most {MAX_CLASSES}"):
        write_response(ModelInferResponse(), ENDPOINT, {"logits": 1000}, response)
