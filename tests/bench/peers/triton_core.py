"""The Triton core over the same graph as ours, on ONNX Runtime's CPU provider behind its Python backend: `GRAPH`.

Serves the model `bert` over gRPC (one text a request: `input_ids` [t], `position` [1] → `best` [1]), with Triton's own
dynamic batching. Asked for its `port`.
"""

import socket
import sys
from typing import Any

from tests.bench.peers import answering

ROWS = 32


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def open_peer() -> answering.Work:
    import numpy as np
    import onnxruntime
    from pytriton.decorators import batch
    from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
    from pytriton.triton import Triton, TritonConfig

    session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
    names = {node.name for node in session.get_inputs()}

    @batch
    def infer(input_ids: Any, position: Any) -> list[Any]:
        """Texts (b, t) of one length: Triton batches no others."""
        rows, length = input_ids.shape
        feeds = {
            "input_ids": input_ids,
            "position_ids": np.tile(np.arange(length), (rows, 1)),
            "lengths": np.full(rows, length, np.int32),
            "token_type_ids": np.zeros_like(input_ids),
            "selected": np.arange(rows) * length + position[:, 0],
        }
        (ids,) = session.run(["top_ids"], {name: feeds[name] for name in names})
        return [ids[:, :1]]

    port = free_port()
    config = TritonConfig(grpc_port=port, http_port=free_port(), metrics_port=free_port(), log_verbose=0)
    triton = Triton(config=config)
    triton.bind(
        model_name="bert",
        infer_func=infer,
        inputs=[
            Tensor(name="input_ids", dtype=np.int64, shape=(-1,)),
            Tensor(name="position", dtype=np.int64, shape=(1,)),
        ],
        outputs=[Tensor(name="best", dtype=np.int64, shape=(1,))],
        config=ModelConfig(max_batch_size=ROWS, batcher=DynamicBatcher()),
    )
    triton.run()
    return lambda request: {"port": port}


if __name__ == "__main__":
    answering.answer(open_peer)
