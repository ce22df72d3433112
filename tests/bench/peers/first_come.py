"""Batching as it is usually done, over our own session: first come, first served, padded to the longest.

`ARTIFACT PROVIDER`; asked with `rows` of token ids and `positions` of masks; whatever waits runs, `batch` at a time.
The one peer that is made of our own code, so that nothing but the batching differs.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from server.artifact import read_artifact
from server.batching.collate import TextItem, collate
from server.config.settings import Settings
from server.runtime.open import open_session
from server.runtime.providers import ProviderChoice
from tests.bench.peers import answering

OUTPUTS = ("top_scores", "top_ids", "logsumexp")


def open_peer() -> answering.Work:
    artifact, provider, precision = sys.argv[1:]
    settings = Settings(provider=provider)
    session = open_session(read_artifact(Path(artifact)), ProviderChoice(provider), settings, precision=precision)

    def work(request: dict[str, Any]) -> dict[str, Any]:
        rows = [
            TextItem(input_ids=np.array(ids), selected=np.array([at]), outputs=OUTPUTS)
            for ids, at in zip(request["rows"], request["positions"], strict=True)
        ]
        best, padded, started = [], 0, time.perf_counter()
        for begin in range(0, len(rows), request["batch"]):
            batch = rows[begin : begin + request["batch"]]
            found = session.run(collate(batch, session.input_names), OUTPUTS)
            best += found["top_ids"][:, 0].tolist()
            padded += len(batch) * max(row.tokens for row in batch)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "best": best, "padding": 1 - sum(row.tokens for row in rows) / padded}

    return work


if __name__ == "__main__":
    answering.answer(open_peer)
