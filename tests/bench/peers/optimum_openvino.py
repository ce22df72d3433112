"""OpenVINO through optimum-intel, greedy: `CHECKPOINT PRECISION WEIGHTS THREADS`, weights `whole` or `int8`.

Asked with `prompts`, all of one length, and `new_tokens`; all prompts run as one batch. It keeps keys and values in
the state of the graph.
"""

import sys
import time
from typing import Any

from tests.bench.peers import answering


def open_peer() -> answering.Work:
    import torch
    import transformers
    from optimum.intel import OVModelForCausalLM

    checkpoint, precision, weights, threads = sys.argv[1:]
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(int(threads))
    config = {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": int(threads),
        "PERFORMANCE_HINT": "LATENCY",
        "CACHE_DIR": "",
    }
    model = OVModelForCausalLM.from_pretrained(
        checkpoint, export=True, load_in_8bit=weights == "int8", ov_config=config
    )
    model.generation_config.eos_token_id = None  # no continuation ends early

    def work(request: dict[str, Any]) -> dict[str, Any]:
        (new_tokens,) = set(request["new_tokens"])
        ids = torch.tensor(request["prompts"])
        started = time.perf_counter()
        found = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        return {"seconds": time.perf_counter() - started, "tokens": found[:, ids.shape[1] :].tolist()}

    return work


answering.answer(open_peer)
