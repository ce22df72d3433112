"""Malicious image files sent to a real server: each is refused or decoded, and the server keeps running."""

from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from tests.server.images.files import FILES, jpeg_claiming, png_chunk, png_header

EXPECTED = {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}


@pytest.fixture(scope="module")
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield AffinityStub(channel)


def classify(stub, *images):
    """The status code and the error text of a response."""
    try:
        stub.ClassifyImage(pb.ClassifyImageRequest(model="tiny-vit", images=images))
    except grpc.RpcError as error:
        return error.code(), error.details()
    return grpc.StatusCode.OK, ""


def damaged(seed):
    """An image file with some bytes changed, removed or inserted, mostly near its start."""
    random = np.random.default_rng(seed)
    file = bytearray(FILES[sorted(FILES)[seed % len(FILES)]])
    for _ in range(random.integers(1, 6)):
        at = int(random.integers(0, min(len(file), random.choice([60, 400, 100_000]))))
        match random.integers(3):
            case 0:
                file[at] = random.integers(256)
            case 1 if len(file) > 30:
                del file[at : at + random.integers(1, 20)]
            case _:
                file[at:at] = random.bytes(random.integers(1, 20))
    return bytes(file)


def test_damaged_files_are_refused_or_decoded(stub):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda seed: classify(stub, damaged(seed)), range(600)))
    assert {code for code, _ in results} == EXPECTED
    assert all(text.startswith("images[0]: found ") for code, text in results if text)
    assert classify(stub, FILES["png"])[0] is grpc.StatusCode.OK


@pytest.mark.parametrize(
    "file",
    [
        png_header(50_000, 50_000),
        png_header(1, 50_000_000),
        png_header(2**31 - 1, 2**31 - 1),
        jpeg_claiming(65_000, 65_000),
        jpeg_claiming(8_000, 6_000, progressive=True)[:-2] + b"\xff\xda" * 1000,
        FILES["png"][:33] + png_chunk(b"iCCP", b"x\0\0" + b"\x78\x9c" + b"\0" * 1000) + FILES["png"][33:][:50],
        b"GIF89a" + b"\xff" * 1000,
        b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 100,
    ],
    ids=range(8),
)
def test_files_that_claim_enormous_sizes_are_refused(stub, file):
    assert classify(stub, FILES["png"], file)[0] is grpc.StatusCode.INVALID_ARGUMENT


def test_the_pixels_of_a_request_are_limited(stub):
    code, text = classify(stub, *[png_header(8_000, 6_000)] * 30, b"what else")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == "images: found 1008000000 pixels in the first 21, expected at most 1000000000 in a request"


def test_a_request_cannot_have_more_images_than_the_queue_holds(stub):
    code, text = classify(stub, *[FILES["one pixel"]] * 2000)
    assert (code, text.split(",")[0]) == (grpc.StatusCode.INVALID_ARGUMENT, "images: found 2000 inputs")
