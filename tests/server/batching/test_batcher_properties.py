"""Properties of the batcher for any requests and cancellations, with one or two sessions, and with little memory."""

import asyncio
from collections import Counter

import hypothesis.strategies as st
from hypothesis import given, settings

from server.admission.queue import Limits
from server.batching.batcher import Batcher
from server.batching.scheduler import Budget
from server.observability.observer import NoOpObserver
from tests.server.batching.fakes import SumSession, item, run_items, sums

BUDGET = Budget(items=4, tokens=32, logit_positions=1, padding=0.5)
# For each request the lengths of its items, whether it is cancelled, and whether the event loop runs before the next.
REQUESTS = st.lists(
    st.tuples(st.lists(st.integers(1, 12), min_size=1, max_size=7), st.booleans(), st.booleans()), max_size=12
)


class Simulation:
    """Sends requests to sessions that run from request number `opens` on, and collects the answers."""

    def __init__(self, requests, *, workers, memory_items, opens):
        self.sessions, self.items, self.answers = [SumSession() for _ in range(workers)], [], []
        for session in self.sessions:
            session.memory_items, session.no_memory = memory_items, "out of memory"
            session.open.clear()
        asyncio.run(self._pass(requests, opens))

    async def _pass(self, requests, opens):
        limits = Limits(inputs=200, tokens=2000)
        batcher = Batcher(self.sessions, name="sums", budget=BUDGET, limits=limits, observer=NoOpObserver())
        await batcher.start()
        tasks = []
        for number, (lengths, cancelled, pause) in enumerate(requests):
            if number == opens:
                self._open()
            first = 100 * (number + 1)  # so that all items have different sums
            self.items.append([item(first + index, *[0] * (length - 1)) for index, length in enumerate(lengths)])
            tasks.append(asyncio.create_task(run_items(batcher, self.items[-1])))
            if pause:
                await asyncio.sleep(0)
            if cancelled:
                tasks[-1].cancel()
        self._open()
        self.answers = await asyncio.gather(*tasks, return_exceptions=True)
        await batcher.drain()
        self.left_behind = batcher.waiting_inputs, batcher.waiting_tokens, batcher.running_inputs

    def _open(self):
        for session in self.sessions:
            session.open.set()

    @property
    def ran(self):
        """The batches that had enough memory."""
        return [batch for session in self.sessions for batch in session.batches if len(batch) <= session.memory_items]


@settings(max_examples=60)
@given(REQUESTS, st.integers(1, 2), st.integers(1, 4), st.integers(0, 12))
def test_no_item_is_lost_or_run_twice_or_answered_out_of_order(requests, workers, memory_items, opens):
    simulation = Simulation(requests, workers=workers, memory_items=memory_items, opens=opens)
    runs = Counter(sum(ids) for batch in simulation.ran for ids in batch)
    for (_, cancelled, _), items, answers in zip(requests, simulation.items, simulation.answers, strict=True):
        own = [int(each.input_ids.sum()) for each in items]
        assert all(runs[each] <= 1 for each in own)
        if not cancelled:
            assert sums(answers) == own
            assert all(runs[each] == 1 for each in own)
    assert simulation.left_behind == (0, 0, 0)
    for batch in simulation.ran:
        assert len(batch) <= BUDGET.items
        assert len(batch) * len(batch[0]) <= BUDGET.tokens
