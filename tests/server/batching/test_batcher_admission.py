"""Admission to the batcher: limits, reservations, deadlines, priorities, cancellation, and the end of the batcher."""

import asyncio

import pytest

from server.admission.queue import Limits, RequestContext
from server.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from tests.server.batching.fakes import item, run_items, sums, until


async def test_a_full_queue_refuses_requests_and_says_when_to_retry(make, session, events):
    batcher = await make(limits=Limits(inputs=3, tokens=20))
    session.open.clear()
    running = asyncio.create_task(run_items(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    waiting = asyncio.create_task(run_items(batcher, [item(2), item(3)]))
    await until(lambda: batcher.waiting_inputs == 2)
    with pytest.raises(Overloaded, match="the queue of sums is full: 2 of 3 inputs") as refusal:
        await run_items(batcher, [item(4), item(5)])
    assert refusal.value.retry_after_s > 0
    assert events.counts["overloaded"] == 1
    with pytest.raises(InvalidRequest, match="found 4 inputs"):
        await run_items(batcher, [item(4)] * 4)
    session.open.set()
    assert sums(await running) + sums(await waiting) == [1, 2, 3]


async def test_a_reservation_counts_before_there_are_items_and_passes_to_them(make):
    batcher = await make(limits=Limits(inputs=3, tokens=20))
    async with batcher.reserve(2, RequestContext()) as reservation:
        with pytest.raises(Overloaded, match="the queue of sums is full: 2 of 3 inputs"):
            await run_items(batcher, [item(3), item(4)])
        assert sums(await batcher.run([item(1), item(2)], reservation)) == [1, 2]
        assert (batcher.waiting_inputs, reservation.inputs) == (0, 0)
    with pytest.raises(ValueError, match="unreadable"):
        async with batcher.reserve(3, RequestContext()):
            raise ValueError("unreadable")
    with pytest.raises(InvalidRequest, match="texts: found 4 inputs, expected at most 3"):
        await run_items(batcher, [item(1)] * 4, field="texts")
    assert (batcher.waiting_inputs, batcher.waiting_tokens, batcher.in_flight.count) == (0, 0, 0)


async def test_a_refused_request_returns_its_reservation(make):
    batcher = await make(limits=Limits(inputs=3, tokens=20))
    with pytest.raises(InvalidRequest, match="found 30 tokens together"):
        await run_items(batcher, [item(*range(15)), item(*range(15))])
    assert (batcher.waiting_inputs, batcher.waiting_tokens) == (0, 0)


async def test_an_item_too_large_for_any_batch_is_refused(make):
    batcher = await make(tokens=10)
    with pytest.raises(InvalidRequest, match=r"texts\[1\]: found 11 tokens"):
        await run_items(batcher, [item(1), item(*range(11))], field="texts")


async def test_a_request_that_is_cancelled_while_it_waits_never_runs(make, session, events):
    batcher = await make()
    session.open.clear()
    running = asyncio.create_task(run_items(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    leaving = asyncio.create_task(run_items(batcher, [item(2), item(3)]))
    await until(lambda: batcher.waiting_inputs == 2)
    leaving.cancel()
    await until(leaving.done)
    assert batcher.waiting_inputs == batcher.waiting_tokens == 0
    session.open.set()
    assert sums(await running) == [1]
    assert session.batches == [[[1]]]
    assert events.counts == {"cancelled": 2}
    assert sums(await run_items(batcher, [item(4)])) == [4]


NOW = 100.0  # on a clock that stands still: a request arrives before its deadline on a slow machine, too


async def test_an_expired_item_does_not_run(make, session, events):
    batcher = await make(clock=lambda: NOW)
    session.open.clear()
    running = asyncio.create_task(run_items(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    with pytest.raises(DeadlineExceeded):
        await run_items(batcher, [item(2)], RequestContext(deadline=NOW + 0.01))
    with pytest.raises(DeadlineExceeded):
        await run_items(batcher, [item(3)], RequestContext(deadline=NOW))
    assert batcher.waiting_inputs == 0
    session.open.set()
    await running
    assert session.batches == [[[1]]]
    assert events.counts == {"expired": 1}


async def test_a_deadline_applies_before_there_are_items(make, session):
    batcher = await make(clock=lambda: NOW)
    with pytest.raises(DeadlineExceeded, match="passed before its answer"):
        async with batcher.reserve(2, RequestContext(deadline=NOW + 0.01)):
            await asyncio.Event().wait()  # the items are never ready
    assert (batcher.waiting_inputs, batcher.in_flight.count, session.batches) == (0, 0, [])


async def test_a_request_with_a_high_priority_runs_first(make, session):
    batcher = await make(items=1)
    session.open.clear()
    tasks = [asyncio.create_task(run_items(batcher, [item(1)]))]
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    for number, priority in ((2, 0), (3, 9), (4, 1)):
        tasks.append(asyncio.create_task(run_items(batcher, [item(number)], RequestContext(priority=priority))))
    await until(lambda: batcher.waiting_inputs == 3)
    session.open.set()
    await asyncio.gather(*tasks)
    order = [batch[0][0] for batch in session.batches]
    assert order.index(4) < order.index(3)
    assert sorted(order) == [1, 2, 3, 4]


async def test_a_request_with_a_high_priority_runs_before_a_collated_batch(make, session):
    batcher = await make(items=4)
    session.open.clear()
    tasks = [asyncio.create_task(run_items(batcher, [item(1)]))]
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    tasks += [asyncio.create_task(run_items(batcher, [item(*[1] * 16)])) for _ in range(4)]
    await until(lambda: session.collated == 2)
    tasks.append(asyncio.create_task(run_items(batcher, [item(4)], RequestContext(priority=1))))
    await until(lambda: batcher.waiting_inputs == 5)
    session.open.set()
    await asyncio.gather(*tasks)
    assert [4] in [ids[:1] for ids in session.batches[1]]


async def test_abort_fails_all_requests_in_flight(make, session, events):
    batcher = await make(items=1)
    session.open.clear()
    tasks = [asyncio.create_task(run_items(batcher, [item(number)])) for number in range(4)]
    await asyncio.sleep(0)
    batcher.abort()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in found] == [NotReady] * 4
    assert batcher.waiting_inputs == 0
    session.open.set()
    assert sums(await run_items(batcher, [item(5)])) == [5]


async def test_draining_answers_requests_in_flight_and_refuses_new_ones(make, session):
    batcher = await make(items=1)
    session.open.clear()
    tokenised = asyncio.Event()

    async def tokenise_and_run(number):
        async with batcher.reserve(1, RequestContext()) as reservation:
            await tokenised.wait()  # the request is in flight, although none of its items waits yet
            return await batcher.run([item(number)], reservation)

    tasks = [asyncio.create_task(tokenise_and_run(number)) for number in range(4)]
    await asyncio.sleep(0)
    draining = asyncio.create_task(batcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="sums is being unloaded"):
        await run_items(batcher, [item(9)])
    tokenised.set()
    await until(lambda: batcher.running_inputs)
    assert not draining.done()
    session.open.set()
    assert [sums(answer) for answer in await asyncio.gather(*tasks)] == [[0], [1], [2], [3]]
    await draining
