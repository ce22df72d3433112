"""A client in a process of its own that reads a generation: `python -m tests.bench.soak.reader SERVER MODEL`.

It prints a line after its first response, and reads slowly from then on, so that it can be stopped or killed.
"""

import sys
import time

import grpc

from protos.affinity_pb2_grpc import AffinityStub
from tests.bench.soak.disturbances import NARROW, much


def main(target: str, model: str) -> None:
    with grpc.insecure_channel(target, NARROW) as channel:
        try:
            for _ in AffinityStub(channel).Generate(much(model)):
                print("reading", flush=True)
                time.sleep(0.1)
        except grpc.RpcError as error:
            print(error.code().name, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
