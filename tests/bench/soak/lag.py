"""How long a server's event loop takes to answer the smallest call: `python -m tests.bench.soak.lag SERVER`.

A process of its own, because the process that makes the load is busy. It prints a line of seconds for each call.
"""

import sys
import time

import grpc

PAUSE_S = 0.1


def main(target: str) -> None:
    with grpc.insecure_channel(target) as channel:
        live = channel.unary_unary("/inference.GRPCInferenceService/ServerLive")
        live(b"", wait_for_ready=True)
        while True:
            begun = time.monotonic()
            live(b"")
            print(time.monotonic() - begun, flush=True)
            time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(*sys.argv[1:])
