"""`python -m tests.bench.embeddings`: what embeddings cost as floats and as bytes, beside each other.

Each side is a call of the typed service on a server in another process, whose model returns the same vectors at once:
what remains is to write them into messages, to send them and to read them. The sides take turns.
"""

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np

from protos import affinity_pb2 as pb
from protos.affinity_pb2_grpc import AffinityStub, add_AffinityServicer_to_server
from server.admission.queue import Limits
from server.observability.prometheus import Metrics
from server.rpc.affinity.servicer import AffinityService
from server.tasks.embed import Embeddings
from server.text.tokenizer import TokenUsage
from tests.bench import options
from tests.bench.measure import Result, Side, Target, in_rounds, machine, ratio, table, verdicts

FLOAT, BYTES = "float", "bytes"
ARRAYS, LISTS = "into arrays", "into lists"
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]

Read = Callable[[pb.EmbedResponse], Any]
READ: dict[tuple[str, str], Read] = {
    (ARRAYS, FLOAT): lambda response: np.array([list(result.values) for result in response.results], np.float32),
    (ARRAYS, BYTES): lambda response: np.stack([np.frombuffer(r.embedding_bytes, "<f4") for r in response.results]),
    (LISTS, FLOAT): lambda response: [list(result.values) for result in response.results],
    (LISTS, BYTES): lambda response: [np.frombuffer(r.embedding_bytes, "<f4").tolist() for r in response.results],
}


class Prepared:
    """Takes the place of the repository: its only model returns vectors that were computed before."""

    def __init__(self, vectors: np.ndarray) -> None:
        limits = Limits(inputs=len(vectors), tokens=len(vectors))
        artifact = SimpleNamespace(manifest=SimpleNamespace(task="embed"))
        self._model = SimpleNamespace(
            name="prepared", version="1", limits=limits, artifact=artifact, threads=ThreadPoolExecutor(1)
        )
        self._embeddings = Embeddings(vectors, [TokenUsage(8, False)] * len(vectors))

    @contextmanager
    def use(self, name: str, version: str, *task_classes: type[object]) -> Any:
        async def task(*_: Any, **__: Any) -> Embeddings:
            return self._embeddings

        yield self._model, task


def serve(texts: int, width: int, ports: Connection) -> None:
    """Serve until the process is ended. Sends the port."""

    async def run() -> None:
        vectors = np.random.default_rng(0).standard_normal((texts, width), np.float32)
        server = grpc.aio.server(options=UNLIMITED)
        add_AffinityServicer_to_server(AffinityService(Prepared(vectors), Metrics()), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ports.send(port)
        await server.wait_for_termination()

    asyncio.run(run())


def side(stub: AffinityStub, workload: str, encoding: str, texts: int) -> Side:
    """Calls that return vectors in this encoding, in vectors per second."""
    request = pb.EmbedRequest(inputs=["a"] * texts, encoding_format=encoding)

    def run() -> float:
        started = time.perf_counter()
        found = READ[workload, encoding](stub.Embed(request, timeout=60))
        assert len(found) == texts
        return texts / (time.perf_counter() - started)

    return Side(encoding, run)


def main(argv: Sequence[str] | None = None) -> None:
    parser = options.parser("embeddings", __doc__)
    parser.add_argument("--texts", type=int, default=1000, help="texts in a call (1000)")
    parser.add_argument("--width", type=int, default=768, help="width of the vectors (768)")
    options.add_rounds(parser, 20)
    given = parser.parse_args(argv)
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    process = spawn.Process(target=serve, args=(given.texts, given.width, theirs), daemon=True)
    process.start()
    theirs.close()  # so that the end of the process is noticed
    results: list[Result] = []
    try:
        with grpc.insecure_channel(f"127.0.0.1:{ours.recv()}", options=UNLIMITED) as channel:
            stub = AffinityStub(channel)
            for workload in (ARRAYS, LISTS):
                sides = [side(stub, workload, encoding, given.texts) for encoding in (FLOAT, BYTES)]
                results += in_rounds(workload, sides, given.rounds)
    finally:
        process.kill()
        process.join()
    targets = [Target(ARRAYS, BYTES, FLOAT, 3), Target(LISTS, BYTES, FLOAT, 1.5)]
    print(f"{given.texts} vectors of {given.width} numbers in a call; {machine()}\n")
    print(table(results, "vectors per second"), verdicts(results, targets), sep="\n\n")
    for target in targets:
        print(f"{target.workload}: bytes are {ratio(results, target):.1f} times as fast as floats")


if __name__ == "__main__":
    main()
