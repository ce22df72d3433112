"""Invalid requests over the Open Inference Protocol: the status and the text of the error."""

import numpy as np
import pytest
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from tests.server.rpc.affinity.test_servicer import TEXT, picture
from tests.server.rpc.open_inference.requests import IDS, MASK, infer

PIXELS = np.zeros((1, 3, 32, 31), np.float32)
WRONG = {
    "an empty text": ("tiny-bert", [("text", [""])], {}, "text[0]: found no [MASK]"),
    "no mask": ("tiny-bert", [("text", ["a"])], {}, "text[0]: found no [MASK]"),
    "too long": ("tiny-bert", [("text", ["[MASK]" + " a" * 80])], {}, "expected at most 64"),
    "not UTF-8": ("tiny-bert", [("text", [b"\xff"])], {}, "text[0]: found byte 0 that is not UTF-8"),
    "another tensor": (
        "tiny-bert",
        [("texts", [TEXT])],
        {},
        "inputs: found a tensor named 'texts', expected only text",
    ),
    "a tensor more": ("tiny-bert", [("text", [TEXT]), ("x", [TEXT])], {}, "inputs: found a tensor named 'x'"),
    "no tensor": ("tiny-bert", [], {}, "inputs: found no tensor named 'text', expected BYTES of shape [n]"),
    "a matrix": ("tiny-bert", [("text", [[TEXT, TEXT]])], {}, "text: found shape [1, 2], expected BYTES of shape [n]"),
    "a datatype": ("tiny-bert.raw", [("input_ids", IDS.astype(np.int32), "INT32")], {}, "input_ids: found INT32"),
    "a shape": ("tiny-vit.raw", [("pixel_values", PIXELS, "FP32")], {}, "FP32 of shape [n, 3, 32, 32]"),
    "no image": ("tiny-vit", [("image", [b"no image"])], {}, "image[0]: found "),
    "a truncated image": ("tiny-vit", [("image", [picture()[:-300]])], {}, "image[0]: found "),
    "left padding": (
        "tiny-bert.raw",
        [("input_ids", IDS, "INT64"), ("attention_mask", MASK[:, ::-1].copy(), "INT64")],
        {},
        "attention_mask[1]: found ",
    ),
    "an unknown token": ("tiny-bert.raw", [("input_ids", IDS + 200, "INT64")], {}, "input_ids[0, 0]: found "),
    "a parameter": (
        "tiny-bert",
        [("text", [TEXT])],
        {"k": 1},
        "parameters['k']: found an unknown name, expected one of",
    ),
    "its kind": ("tiny-bert", [("text", [TEXT])], {"top_k": "5"}, "parameters['top_k']: found '5' (string_param)"),
    "no such target": ("tiny-bert", [("text", [TEXT])], {"targets": "exceptionally"}, "targets[0]: found "),
    "no such function": ("tiny-classifier", [("text", ["a"])], {"function_to_apply": "tanh"}, "function_to_apply: "),
    "a pair too few": (
        "tiny-classifier",
        [("text", ["a", "b"]), ("text_pair", ["c"])],
        {},
        "text_pair: found 1 texts, expected 2",
    ),
    "no such width": ("tiny-embedder", [("text", ["a"])], {"dimensions": -1}, "dimensions: found -1, expected 1 to 64"),
    "the second prompt": ("tiny-gpt", [("text_input", ["a", "a " * 99])], {}, "text_input[1]: found 1"),
    "sampling": ("tiny-gpt", [("text_input", ["a"])], {"top_p": 2.0}, "top_p: found 2.0, expected more than 0"),
    "a long number": (
        "tiny-gpt",
        [("text_input", ["a"])],
        {"stop_token_ids": f"[{'1' * 5000}]"},
        "stop_token_ids: found '[1111",
    ),
    "a deep list": (
        "tiny-gpt",
        [("text_input", ["a"])],
        {"stop_token_ids": "[" * 100_000},
        "stop_token_ids: found '[[",
    ),
    "a large bias": (
        "tiny-gpt",
        [("text_input", ["a"])],
        {"logit_bias": f'{{"1": 1{"0" * 400}}}'},
        "logit_bias: found",
    ),
}


@pytest.mark.parametrize(("model", "inputs", "parameters", "message"), WRONG.values(), ids=WRONG.keys())
def test_an_invalid_request_is_refused_and_the_next_one_works(client, model, inputs, parameters, message):
    with pytest.raises(InferenceServerException) as error:
        infer(client, model, inputs, parameters=parameters)
    assert error.value.status() == "StatusCode.INVALID_ARGUMENT"
    assert message in error.value.message()
    assert infer(client, "tiny-bert", [("text", [TEXT])]).as_numpy("row").tolist() == [0]


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            triton.InferRequestedOutput("tokens"),
            "outputs[0]: found 'tokens', expected one of token, token_id, score, row",
        ),
        (triton.InferRequestedOutput("score", class_count=1), "outputs[0].parameters: found 'classification'"),
    ],
)
def test_unknown_outputs_are_refused(client, output, message):
    with pytest.raises(InferenceServerException) as error:
        infer(client, "tiny-bert", [("text", [TEXT])], outputs=[output])
    assert message in error.value.message()


def test_other_methods_are_unimplemented(client):
    with pytest.raises(InferenceServerException) as error:
        client.get_trace_settings()
    assert error.value.status() == "StatusCode.UNIMPLEMENTED"
