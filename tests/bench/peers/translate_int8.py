"""CTranslate2 with its own int8 conversion of the checkpoint: `CHECKPOINT THREADS`.

Asked with `prompts` and `new_tokens`; all prompts run as one batch.
"""

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.bench.peers import answering


def open_peer() -> answering.Work:
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    checkpoint, threads = sys.argv[1:]
    with tempfile.TemporaryDirectory() as folder:
        converted = Path(folder) / "int8"
        TransformersConverter(checkpoint).convert(str(converted), quantization="int8")
        names = json.loads((converted / "vocabulary.json").read_text())
        model = ctranslate2.Generator(
            str(converted), device="cpu", compute_type="int8", inter_threads=1, intra_threads=int(threads)
        )

    def work(request: dict[str, Any]) -> dict[str, Any]:
        (new_tokens,) = set(request["new_tokens"])
        prompts = [[names[token] for token in prompt] for prompt in request["prompts"]]
        started = time.perf_counter()
        found = model.generate_batch(
            prompts,
            max_length=new_tokens,
            min_length=new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return {"seconds": time.perf_counter() - started, "tokens": [each.sequences_ids[0] for each in found]}

    return work


answering.answer(open_peer)
