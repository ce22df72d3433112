"""Batches of the batcher: answers, collation during runs, failures, memory, sessions, and the observer."""

import asyncio
import threading
import time
from collections import Counter

import numpy as np
import pytest

from tests.server.batching.fakes import FAILING_TOKEN, SumSession, item, run_items, sums, until


async def test_each_request_gets_its_own_answers(make, session):
    batcher = await make()
    session.open.clear()  # until all requests have arrived
    random = np.random.default_rng(0)
    requests = [
        [item(*random.integers(0, 100, random.integers(1, 30))) for _ in range(random.integers(1, 5))]
        for _ in range(400)
    ]
    tasks = [asyncio.create_task(run_items(batcher, items)) for items in requests]
    total = sum(map(len, requests))
    await until(lambda: batcher.waiting_inputs + batcher.running_inputs == total)
    session.open.set()
    for items, answer in zip(requests, await asyncio.gather(*tasks), strict=True):
        assert sums(answer) == [int(each.input_ids.sum()) for each in items]
    assert len(session.batches) < total / 2


async def test_a_large_request_is_split_and_its_answers_are_in_order(make, session):
    batcher = await make(items=3)
    assert sums(await run_items(batcher, [item(number) for number in range(10)])) == list(range(10))
    assert max(len(batch) for batch in session.batches) <= 3


async def test_items_that_arrive_during_a_run_form_one_batch(make, session):
    batcher = await make()
    session.open.clear()
    first = asyncio.create_task(run_items(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    others = [asyncio.create_task(run_items(batcher, [item(number)])) for number in range(2, 7)]
    await until(lambda: batcher.waiting_inputs == 5)
    session.open.set()
    assert [sums(answer) for answer in await asyncio.gather(first, *others)] == [[1], [2], [3], [4], [5], [6]]
    assert session.batches == [[[1]], [[2], [3], [4], [5], [6]]]


async def test_a_batch_is_collated_during_a_run_and_later_items_can_join(make, session, events):
    batcher = await make()
    session.open.clear()
    tasks = [asyncio.create_task(run_items(batcher, [item(1)]))]
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    tasks.append(asyncio.create_task(run_items(batcher, [item(2)])))
    await until(lambda: session.collated == 2)
    tasks.append(asyncio.create_task(run_items(batcher, [item(3)])))
    await until(lambda: batcher.waiting_inputs == 2)
    session.open.set()
    await asyncio.gather(*tasks)
    assert session.batches == [[[1]], [[2], [3]]]
    assert [facts["items"] for facts in events.batches] == [1, 2]


async def test_a_small_batch_is_collated_by_the_worker_that_runs_it(make, session, monkeypatch):
    batcher = await make()
    monkeypatch.setattr("server.batching.batcher.SMALL_TOKENS", 10)
    session.open.clear()
    tasks = [asyncio.create_task(run_items(batcher, [item(1)]))]
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    tasks.append(asyncio.create_task(run_items(batcher, [item(2)])))
    await until(lambda: batcher.waiting_inputs == 1)
    session.open.set()
    await asyncio.gather(*tasks)
    assert session.collated == 2  # not a third time, ahead of the second run


async def test_a_failing_run_fails_only_its_own_items(make, session, events):
    batcher = await make(items=1)
    answers = await asyncio.gather(
        *(run_items(batcher, [item(number)]) for number in (1, FAILING_TOKEN, 2)), return_exceptions=True
    )
    assert sums(answers[0]) + sums(answers[2]) == [1, 2]
    assert isinstance(answers[1], RuntimeError)
    assert str(answers[1].__cause__) == "a failed run"
    assert events.counts == {"items that failed": 1}
    assert sums(await run_items(batcher, [item(3)])) == [3]


async def test_the_other_items_of_a_failed_request_do_not_run(make, session, events):
    batcher = await make(items=1)
    with pytest.raises(RuntimeError):
        await run_items(batcher, [item(FAILING_TOKEN), *(item(number) for number in range(5))])
    assert batcher.waiting_inputs == 0
    assert events.counts == {"items that failed": 1, "failed": 5}
    assert session.batches == [[[FAILING_TOKEN]]]


@pytest.mark.parametrize(
    "message",
    [
        "Failed to allocate memory for requested buffer of size 1",
        "Available memory of 1048576 is smaller than requested bytes of 4194304",
    ],
)
async def test_a_batch_without_enough_memory_runs_in_halves(make, session, events, message):
    session.memory_items, session.no_memory = 2, message
    batcher = await make()
    assert sums(await run_items(batcher, [item(number) for number in range(8)])) == list(range(8))
    assert [len(batch) for batch in session.batches] == [8, 4, 2, 2, 4, 2, 2]
    assert not events.counts


@pytest.mark.parametrize("workers", [1, 2])
async def test_halves_of_a_batch_that_was_collated_ahead_are_collated_again(make, session, workers):
    sessions = [session, SumSession()][:workers]
    for each in sessions:
        each.memory_items, each.no_memory = 2, "out of memory"
        each.open.clear()
    batcher, tasks = await make(sessions=sessions), []
    for number in range(workers):
        tasks.append(asyncio.create_task(run_items(batcher, [item(number)])))
        await until(lambda busy=number + 1: (batcher.waiting_inputs, batcher.running_inputs) == (0, busy))
    tasks.append(asyncio.create_task(run_items(batcher, [item(number) for number in range(8 * workers)])))
    await until(lambda: session.collated == 2)
    for each in sessions:
        each.open.set()
    *_, last = await asyncio.gather(*tasks)
    assert sums(last) == list(range(8 * workers))
    sizes = Counter(len(batch) for each in sessions for batch in each.batches)
    assert sizes == {1: workers, 8: workers, 4: 2 * workers, 2: 4 * workers}


async def test_a_free_session_takes_the_next_batch(make, session):
    other = SumSession()
    batcher = await make(items=1, sessions=[session, other])
    session.open.clear()
    held = asyncio.create_task(run_items(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    assert sums(await run_items(batcher, [item(number) for number in range(2, 9)])) == list(range(2, 9))
    assert (other.batches, held.done()) == ([[[number]] for number in range(2, 9)], False)
    session.open.set()
    assert sums(await held) == [1]


async def test_two_sessions_run_at_the_same_time(make):
    both = threading.Barrier(2, timeout=30)

    class Together(SumSession):
        def run(self, feeds, outputs):
            both.wait()
            return super().run(feeds, outputs)

    batcher = await make(items=1, sessions=[Together(), Together()])
    assert sums(await run_items(batcher, [item(number) for number in range(10)])) == list(range(10))


async def test_the_observer_gets_items_tokens_padding_and_times(make, events):
    batcher = await make()
    await run_items(batcher, [item(1, 2, 3, 4), item(1, 2)])
    (facts,) = events.batches
    assert (facts["items"], facts["tokens"], facts["padded_tokens"]) == (2, 6, 8)
    assert len(facts["queue_seconds"]) == 2
    assert facts["spent"].run_seconds > 0


async def test_a_request_is_charged_for_all_its_batches_and_the_rest_is_queueing_time(make, events):
    batcher = await make(items=2)
    begun = time.monotonic()
    await run_items(batcher, [item(1), item(2), item(3)])
    seconds = time.monotonic() - begun
    (spent,) = events.answers
    assert len(events.batches) == 2
    assert spent.run_seconds == pytest.approx(sum(facts["spent"].run_seconds for facts in events.batches))
    assert spent.split_seconds == pytest.approx(sum(facts["spent"].split_seconds for facts in events.batches))
    assert spent.queue_seconds + spent.run_seconds + spent.split_seconds <= seconds
