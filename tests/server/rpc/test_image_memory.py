"""Images with few bytes and many pixels, sent to a real server: the memory that decoding takes is bounded."""

import io
import os
import struct
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest
from PIL import Image

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub
from server.images.file import AVIF_BYTES_PER_PIXEL, BYTES_PER_PIXEL, TIFF_BYTES_PER_PIXEL, WEBP_BYTES_PER_PIXEL
from tests.serving import served

PIXELS = 3000 * 2000
IMAGES, THREADS = 20, 2
OVERHEAD = 60e6  # bytes that are not Pillow's


@contextmanager
def on_one_cpu():
    """Processes started inside have one CPU, and therefore two threads for decoding."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(allowed)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


@pytest.fixture(scope="module")
def server_on_one_cpu(artifacts):
    with on_one_cpu():
        running = served(artifacts, "--models", "tiny-vit")
        server = running.__enter__()
    yield server
    running.__exit__(None, None, None)


def bomb(form):
    """A small file with many pixels."""
    if form == "WEBP":  # lossless: Huffman codes that have only the symbol 0
        width, height = 3000 - 1, 2000 - 1
        data = b"\x2f" + struct.pack("<I", width | height << 14) + bytes([0b10001000, 0b10001000, 0b00001000, 0])
        data += bytes(len(data) % 2)
        chunk = b"VP8L" + struct.pack("<I", len(data)) + data
        return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk
    file = io.BytesIO()
    options = {"TIFF": {"compression": "tiff_deflate"}, "AVIF": {"speed": 10}}.get(form, {})
    Image.new("1" if form == "BMP" else "RGB", (3000, 2000)).save(file, form, **options)
    return file.getvalue()


def memory(process, name):
    """The memory of a process in bytes: VmRSS is the current use, VmHWM the peak since `reset_peak`."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def reset_peak(process):
    Path(f"/proc/{process.pid}/clear_refs").write_text("5")


@pytest.mark.parametrize(
    ("form", "bytes_per_pixel"),
    [
        ("PNG", BYTES_PER_PIXEL),
        ("JPEG", BYTES_PER_PIXEL),
        ("GIF", BYTES_PER_PIXEL),
        ("WEBP", WEBP_BYTES_PER_PIXEL),
        ("BMP", BYTES_PER_PIXEL),
        ("TIFF", TIFF_BYTES_PER_PIXEL),
        ("AVIF", AVIF_BYTES_PER_PIXEL),
    ],
)
def test_decoding_takes_the_memory_of_one_image_for_each_thread(server_on_one_cpu, form, bytes_per_pixel):
    file, process = bomb(form), server_on_one_cpu.process
    with grpc.insecure_channel(server_on_one_cpu.target) as channel:
        classify = AffinityStub(channel).ClassifyImage
        classify(pb.ClassifyImageRequest(images=[file]))
        before = memory(process, "VmRSS")
        reset_peak(process)
        assert len(classify(pb.ClassifyImageRequest(images=[file] * IMAGES)).results) == IMAGES
    taken = memory(process, "VmHWM") - before
    assert taken <= THREADS * bytes_per_pixel * PIXELS + OVERHEAD
