"""The Triton core with a model that returns its input, on its Python backend: `NAME`. Asked for its `port`."""

import sys
from typing import Any

from tests.bench.peers import answering
from tests.bench.peers.triton_core import free_port


def open_peer() -> answering.Work:
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    @batch
    def infer(text: Any) -> list[Any]:
        return [text]

    port = free_port()
    config = TritonConfig(grpc_port=port, http_port=free_port(), metrics_port=free_port(), log_verbose=0)
    triton = Triton(config=config)
    triton.bind(
        model_name=sys.argv[1],
        infer_func=infer,
        inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
        outputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
        config=ModelConfig(max_batch_size=64, batcher=DynamicBatcher()),
    )
    triton.run()
    return lambda request: {"port": port}


if __name__ == "__main__":
    answering.answer(open_peer)
