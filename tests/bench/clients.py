"""Rounds of requests to a server from 16 clients at a time, one input in each request."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tritonclient.grpc as triton

from server.client import Client
from tests.bench.inputs import MaskedText
from tests.bench.load import all_answered
from tests.bench.padding import ran
from tests.bench.sides import Round
from tests.serving import Served

CONCURRENCY = 16


def filling(server: Served, texts: Sequence[MaskedText]) -> Round:
    """One request for each text, with our service."""
    client = Client(server.target)

    def best(text: MaskedText) -> int:
        (filled,) = client.fill_mask([text.text], model="bert-base")
        return filled.masks[0].candidates[0].token

    return lambda: all_answered(best, texts, CONCURRENCY)


def classifying(server: Served, files: Sequence[Path]) -> Round:
    """One request for each file, with our service."""
    client, contents = Client(server.target), [file.read_bytes() for file in files]

    def best(content: bytes) -> int:
        (classified,) = client.classify_image([content], model="vit-base")
        return classified.classes[0].class_id

    return lambda: all_answered(best, contents, CONCURRENCY)


def asking_triton(target: str, texts: Sequence[MaskedText]) -> Round:
    """One request for each text, as token ids."""
    client = triton.InferenceServerClient(target)

    def tensor(name: str, values: list[int]) -> triton.InferInput:
        array = np.array([values])
        return triton.InferInput(name, list(array.shape), "INT64").set_data_from_numpy(array)

    def best(text: MaskedText) -> int:
        inputs = [tensor("input_ids", text.token_ids), tensor("position", [text.position])]
        return int(client.infer("bert", inputs).as_numpy("best")[0, 0])

    return lambda: all_answered(best, texts, CONCURRENCY)


def padding_from_now_on(server: Served) -> Callable[[], float]:
    """The share of padding in what a server has run since."""
    before = ran(server, "bert-base")
    return lambda: ran(server, "bert-base").share_since(before)
