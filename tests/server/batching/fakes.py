"""A session, an observer and helpers for tests of the batcher. The session is small and real: it sums token ids."""

import asyncio
import threading
from collections import Counter

import numpy as np

from server.admission.queue import RequestContext
from server.batching.collate import TextItem
from server.observability.observer import NoOpObserver

FAILING_TOKEN = 666
CONTEXT = RequestContext()


class SumSession:
    """A session that returns the sum of the tokens of each item. Runs wait until `open` is set."""

    def __init__(self):
        self.collated = 0  # batches
        self.open = threading.Event()
        self.open.set()
        self.batches = []  # the input ids of each run
        self.memory_items = 1000
        self.no_memory = ""  # the error for larger batches

    @property
    def input_names(self):
        self.collated += 1  # only `collate` reads this
        return "input_ids", "lengths"

    def run(self, feeds, outputs):
        assert self.open.wait(30)
        self.batches.append(feeds["input_ids"].tolist())
        if FAILING_TOKEN in feeds["input_ids"]:
            raise RuntimeError("a failed run")
        if len(feeds["input_ids"]) > self.memory_items:
            raise RuntimeError(self.no_memory)
        return {name: feeds["input_ids"].sum(axis=1) for name in outputs}


class BatcherEvents(NoOpObserver):
    """Records the events of a batcher."""

    def __init__(self):
        self.batches, self.answers, self.counts = [], [], Counter()

    def batch(self, **facts):
        self.batches.append(facts)

    def answered(self, spent):
        self.answers.append(spent)

    def failed(self, items):
        self.counts["items that failed"] += items

    def dropped(self, reason):
        self.counts[reason] += 1

    def refused(self, reason):
        self.counts[reason] += 1


def item(*ids):
    return TextItem(input_ids=np.array(ids), outputs=("sum",))


def sums(answers):
    return [int(answer["sum"]) for answer in answers]


async def run_items(batcher, items, context=CONTEXT, *, field="inputs"):
    async with batcher.reserve(len(items), context, field=field) as reservation:
        return await batcher.run(items, reservation)


async def until(condition):
    """Yield to the event loop until the condition holds. The time limit of the test applies."""
    while not condition():
        await asyncio.sleep(0)
