"""`transformers.generate`, greedy, with PyTorch's fused attention: `CHECKPOINT DTYPE THREADS`.

Asked with `prompts`, `new_tokens` and `arrivals`. Batches are static, as there is no server: the requests that have
arrived when a batch ends form the next one, are padded on the left, and run until the longest continuation ends.
"""

import sys
import time
from typing import Any

from tests.bench.peers import answering


def open_peer() -> answering.Work:
    import torch
    import transformers

    checkpoint, dtype, threads = sys.argv[1:]
    torch.set_num_threads(int(threads))
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation="sdpa"
    ).eval()
    model.generation_config.eos_token_id = None  # no continuation ends early

    def continued(prompts: list[list[int]], new_tokens: int) -> list[list[int]]:
        longest = max(map(len, prompts))
        ids = torch.zeros(len(prompts), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        with torch.inference_mode():
            found = model.generate(ids, attention_mask=mask, max_new_tokens=new_tokens, do_sample=False, pad_token_id=0)
        return found[:, longest:].tolist()

    def work(request: dict[str, Any]) -> dict[str, Any]:
        prompts, new_tokens, arrivals = request["prompts"], request["new_tokens"], request["arrivals"]
        tokens: list[list[int]] = []
        started = time.perf_counter()
        while (first := len(tokens)) < len(prompts):
            time.sleep(max(0.0, started + arrivals[first] - time.perf_counter()))
            come = sum(arrival <= time.perf_counter() - started for arrival in arrivals)
            longest = max(new_tokens[first:come])
            answers = continued(prompts[first:come], longest)
            tokens += [ids[:wanted] for ids, wanted in zip(answers, new_tokens[first:come], strict=True)]
        return {"seconds": time.perf_counter() - started, "tokens": tokens}

    return work


answering.answer(open_peer)
