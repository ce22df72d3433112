"""Requests with several images: errors name the image, and a request that ends early stops its decoding."""

import asyncio
import threading

import pytest

from server.admission.queue import RequestContext
from server.errors import InvalidRequest
from server.host.cpus import usable_cpus
from server.images.decode_pool import DecodePool
from server.images.preprocess import ImageDecoder
from server.tasks.classify_image import ClassifyImage
from tests.server.images.files import FILES, file_of, picture

pytestmark = pytest.mark.asyncio(loop_scope="module")

CONTEXT = RequestContext()
SECONDS = 30  # after which a test that hangs has failed
PICTURES = [file_of(picture(seed=seed), form) for seed in range(7) for form in ("PNG", "JPEG", "WEBP")][:20]


class Gated(ImageDecoder):
    """A decoder that blocks until the gate opens, and counts the images that it is decoding."""

    def __init__(self, image):
        super().__init__(image)
        self.gate, self.begun, self.most, self._now = threading.Event(), threading.Semaphore(0), 0, 0
        self._lock = threading.Lock()

    def decode(self, file, field="image"):
        with self._lock:
            self._now += 1
            self.most = max(self.most, self._now)
        self.begun.release()
        try:
            assert self.gate.wait(SECONDS)
            return super().decode(file, field)
        finally:
            with self._lock:
                self._now -= 1

    async def has_begun(self, images):
        for _ in range(images):
            assert await asyncio.to_thread(self.begun.acquire, timeout=SECONDS)


@pytest.fixture
def gated(repository):
    """A gated decoder, and the task of a real model over it: four threads, and memory for two images."""
    model = repository.get("tiny-vit")
    decoder = Gated(model.artifact.manifest.image)
    two = 2 * decoder.header(PICTURES[0]).decoding_bytes
    pool = DecodePool(4, decoding_bytes=two)
    yield decoder, ClassifyImage(model.artifact, model.backend, decoder, pool=pool, threads=model.threads)
    decoder.gate.set()
    pool.close()


async def test_images_being_decoded_for_a_cancelled_request_keep_their_memory(gated):
    decoder, task = gated
    given_up = asyncio.create_task(task(PICTURES[:1] * 4, context=CONTEXT))
    await decoder.has_begun(2)
    given_up.cancel()
    assert isinstance((await asyncio.gather(given_up, return_exceptions=True))[0], asyncio.CancelledError)
    following = asyncio.create_task(task(PICTURES[:1] * 4, context=CONTEXT))
    async with asyncio.timeout(SECONDS):
        while not task._pool._memory._waiters:  # it has two threads, and no memory
            await asyncio.sleep(0)
    decoder.gate.set()
    assert len(await following) == 4
    assert decoder.most == 2


@pytest.mark.parametrize("bad", [0, 11, 19])
async def test_one_bad_image_of_twenty_is_named_and_the_others_are_not_decoded(gated, bad):
    decoder, task = gated
    decoder.gate.set()
    images = [*PICTURES[:bad], FILES["png"][:-40], *PICTURES[bad + 1 :]]
    for _ in range(3):
        with pytest.raises(InvalidRequest, match=rf"^images\[{bad}\]: found a broken image"):
            await task(images, context=CONTEXT)
    assert len(await task(PICTURES, context=CONTEXT)) == 20
    assert decoder.most <= 2


async def test_nothing_is_decoded_if_one_of_the_headers_is_bad(gated):
    decoder, task = gated
    with pytest.raises(InvalidRequest, match=r"^images\[20\]: found 4 bytes that are not an image"):
        await task([*PICTURES, b"what"], context=CONTEXT)
    assert not decoder.most


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("tiny-vit", PICTURES[:1] * 1000, "10 classes of each of 1000 inputs"),
        ("tiny-classifier", ["a list"] * 1000, "3 classes of each of 1000 inputs"),
    ],
)
async def test_too_many_classes_in_a_response_are_refused(repository, monkeypatch, name, given, found):
    """The real limit is 262,144 classes, which no tiny model reaches within its queue."""
    monkeypatch.setattr("server.tasks.classification.MAX_CLASSES", 2500)
    task = repository.get(name).task
    with pytest.raises(InvalidRequest, match=f"^top_k: found {found}, expected at most 2500 in a request"):
        await task(given, top_k=50, context=CONTEXT)
    assert len(await task(given, top_k=2, context=CONTEXT)) == 1000


async def test_texts_do_not_wait_behind_images(repository):
    """All threads for images are busy, and more images wait."""
    pool, end = repository.get("tiny-vit").task._pool, threading.Event()
    busy = [
        asyncio.create_task(pool.run(lambda: end.wait(2 * SECONDS), decoding_bytes=1)) for _ in range(usable_cpus() + 9)
    ]
    try:
        async with asyncio.timeout(SECONDS):
            assert await repository.get("tiny-classifier").task(["a list"], context=CONTEXT)
    finally:
        end.set()
        await asyncio.gather(*busy)
