"""Answers reach their callers, whatever else is under way. The session is a small real one: it sums token ids."""

import asyncio
import contextlib
import threading
import time
from collections import Counter

import numpy as np
import pytest

from server.admission.queue import Limits, RequestContext
from server.batching.batcher import Batcher
from server.batching.collate import TextItem
from server.batching.scheduler import Budget
from server.errors import DeadlineExceeded, InvalidRequest, NotReady, Overloaded
from server.observability.observer import NoOpObserver

POISON = 666
NO_HURRY = RequestContext()


class Sums:
    """Answers each item with the sum of its tokens. Runs only while the gate is open."""

    def __init__(self):
        self.collated = 0  # batches
        self.open = threading.Event()
        self.open.set()
        self.batches = []  # the input ids of each run
        self.memory_items = 1000
        self.no_memory = ""  # what is said of more items than that

    @property
    def input_names(self):
        self.collated += 1  # nobody else asks
        return "input_ids", "lengths"

    def run(self, feeds, outputs):
        assert self.open.wait(30)
        self.batches.append(feeds["input_ids"].tolist())
        if POISON in feeds["input_ids"]:
            raise RuntimeError("poison")
        if len(feeds["input_ids"]) > self.memory_items:
            raise RuntimeError(self.no_memory)
        return {name: feeds["input_ids"].sum(axis=1) for name in outputs}


class Notes(NoOpObserver):
    """Remembers what it is told."""

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


async def ask(batcher, items, context=NO_HURRY, *, field="inputs"):
    async with batcher.reserve(len(items), context, field=field) as reservation:
        return await batcher.run(items, reservation)


@pytest.fixture
def session():
    return Sums()


@pytest.fixture
def notes():
    return Notes()


@pytest.fixture
async def make(session, notes):
    """A started batcher; ended, whatever the test did to it."""
    async with contextlib.AsyncExitStack() as stack:

        async def made(*, items=8, tokens=64, limits=None, sessions=None, **settings):
            batcher = Batcher(
                sessions or [session],
                name="sums",
                budget=Budget(items=items, tokens=tokens, logit_positions=64, padding=0.5),
                limits=limits or Limits(requests=2000, tokens=100_000),
                observer=notes,
                **settings,
            )
            await batcher.start()
            stack.push_async_callback(batcher.drain)
            stack.callback(session.open.set)
            return batcher

        yield made


async def until(condition):
    """Let others run until the condition holds; the test's own time limit ends what never comes."""
    while not condition():
        await asyncio.sleep(0)


async def test_every_caller_gets_the_answer_to_what_it_asked(make, session):
    batcher = await make()
    random = np.random.default_rng(0)
    requests = [
        [item(*random.integers(0, 100, random.integers(1, 30))) for _ in range(random.integers(1, 5))]
        for _ in range(400)
    ]
    answers = await asyncio.gather(*(ask(batcher, items) for items in requests))
    for items, answer in zip(requests, answers, strict=True):
        assert sums(answer) == [int(each.input_ids.sum()) for each in items]
    assert len(session.batches) < sum(len(items) for items in requests) / 2


async def test_a_request_of_many_rows_is_split_and_put_together_in_order(make, session):
    batcher = await make(items=3)
    assert sums(await ask(batcher, [item(number) for number in range(10)])) == list(range(10))
    assert max(len(batch) for batch in session.batches) <= 3


async def test_what_comes_while_a_batch_runs_runs_together(make, session):
    batcher = await make()
    session.open.clear()
    first = asyncio.create_task(ask(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    others = [asyncio.create_task(ask(batcher, [item(number)])) for number in range(2, 7)]
    await until(lambda: batcher.waiting_inputs == 5)
    session.open.set()
    assert [sums(answer) for answer in await asyncio.gather(first, *others)] == [[1], [2], [3], [4], [5], [6]]
    assert session.batches == [[[1]], [[2], [3], [4], [5], [6]]]


async def test_a_batch_is_collated_while_another_runs_and_joined_by_who_comes_in_time(make, session, notes):
    batcher = await make()
    session.open.clear()
    tasks = [asyncio.create_task(ask(batcher, [item(1)]))]
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    tasks.append(asyncio.create_task(ask(batcher, [item(2)])))
    await until(lambda: session.collated == 2)
    tasks.append(asyncio.create_task(ask(batcher, [item(3)])))
    await until(lambda: batcher.waiting_inputs == 2)
    session.open.set()
    await asyncio.gather(*tasks)
    assert session.batches == [[[1]], [[2], [3]]]
    assert [facts["items"] for facts in notes.batches] == [1, 2]


async def test_a_failing_run_fails_its_own_rows_only(make, session, notes):
    batcher = await make(items=1)
    answers = await asyncio.gather(*(ask(batcher, [item(number)]) for number in (1, POISON, 2)), return_exceptions=True)
    assert sums(answers[0]) + sums(answers[2]) == [1, 2]
    assert isinstance(answers[1], RuntimeError)
    assert str(answers[1].__cause__) == "poison"
    assert notes.counts == {"items that failed": 1}
    assert sums(await ask(batcher, [item(3)])) == [3]


async def test_the_rest_of_a_failed_request_does_not_run(make, session, notes):
    batcher = await make(items=1)
    with pytest.raises(RuntimeError):
        await ask(batcher, [item(POISON), *(item(number) for number in range(5))])
    assert batcher.waiting_inputs == 0
    assert notes.counts == {"items that failed": 1, "failed": 5}
    assert session.batches == [[[POISON]]]


@pytest.mark.parametrize(
    "said",
    [
        "Failed to allocate memory for requested buffer of size 1",
        "Available memory of 1048576 is smaller than requested bytes of 4194304",
    ],
)
async def test_rows_for_which_there_is_no_memory_together_run_in_halves(make, session, notes, said):
    session.memory_items, session.no_memory = 2, said
    batcher = await make(max_delay_s=0.05)
    assert sums(await ask(batcher, [item(number) for number in range(8)])) == list(range(8))
    assert [len(batch) for batch in session.batches] == [8, 4, 2, 2, 4, 2, 2]
    assert not notes.counts


@pytest.mark.parametrize("workers", [1, 2])
async def test_halves_of_what_was_collated_ahead_are_collated_anew(make, session, workers):
    sessions = [session, Sums()][:workers]
    for each in sessions:
        each.memory_items, each.no_memory = 2, "out of memory"
        each.open.clear()
    batcher, tasks = await make(sessions=sessions), []
    for number in range(workers):
        tasks.append(asyncio.create_task(ask(batcher, [item(number)])))
        await until(lambda busy=number + 1: (batcher.waiting_inputs, batcher.running_inputs) == (0, busy))
    tasks.append(asyncio.create_task(ask(batcher, [item(number) for number in range(8 * workers)])))
    await until(lambda: session.collated == 2)
    for each in sessions:
        each.open.set()
    *_, last = await asyncio.gather(*tasks)
    assert sums(last) == list(range(8 * workers))
    sizes = Counter(len(batch) for each in sessions for batch in each.batches)
    assert sizes == {1: workers, 8: workers, 4: 2 * workers, 2: 4 * workers}


async def test_a_full_queue_refuses_and_hints_when_to_come_back(make, session, notes):
    batcher = await make(limits=Limits(requests=3, tokens=20))
    session.open.clear()
    running = asyncio.create_task(ask(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    waiting = asyncio.create_task(ask(batcher, [item(2), item(3)]))
    await until(lambda: batcher.waiting_inputs == 2)
    with pytest.raises(Overloaded, match="the queue of sums is full: 2 of 3 inputs") as refusal:
        await ask(batcher, [item(4), item(5)])
    assert refusal.value.retry_after_s > 0
    assert notes.counts["overloaded"] == 1
    with pytest.raises(InvalidRequest, match="found 4 inputs"):
        await ask(batcher, [item(4)] * 4)
    session.open.set()
    assert sums(await running) + sums(await waiting) == [1, 2, 3]


async def test_a_place_is_counted_before_there_are_rows_and_goes_over_to_them(make):
    batcher = await make(limits=Limits(requests=3, tokens=20))
    async with batcher.reserve(2, RequestContext()) as reservation:
        with pytest.raises(Overloaded, match="the queue of sums is full: 2 of 3 inputs"):
            await ask(batcher, [item(3), item(4)])
        assert sums(await batcher.run([item(1), item(2)], reservation)) == [1, 2]
        assert (batcher.waiting_inputs, reservation.inputs) == (0, 0)
    with pytest.raises(ValueError, match="unreadable"):
        async with batcher.reserve(3, RequestContext()):
            raise ValueError("unreadable")
    with pytest.raises(InvalidRequest, match="texts: found 4 inputs, expected at most 3"):
        await ask(batcher, [item(1)] * 4, field="texts")
    assert (batcher.waiting_inputs, batcher.waiting_tokens, batcher.in_flight.count) == (0, 0, 0)


async def test_rows_that_do_not_get_in_give_their_place_back(make):
    batcher = await make(limits=Limits(requests=3, tokens=20))
    with pytest.raises(InvalidRequest, match="found 30 tokens together"):
        await ask(batcher, [item(*range(15)), item(*range(15))])
    assert (batcher.waiting_inputs, batcher.waiting_tokens) == (0, 0)


async def test_whichever_session_is_free_takes_the_next_batch(make, session):
    """Two devices: while one is busy, the other serves everybody else."""
    other = Sums()
    batcher = await make(items=1, sessions=[session, other])
    session.open.clear()
    stuck = asyncio.create_task(ask(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    assert sums(await ask(batcher, [item(number) for number in range(2, 9)])) == list(range(2, 9))
    assert (other.batches, stuck.done()) == ([[[number]] for number in range(2, 9)], False)
    session.open.set()
    assert sums(await stuck) == [1]


async def test_two_sessions_run_at_the_same_time(make):
    both = threading.Barrier(2, timeout=30)

    class Together(Sums):
        def run(self, feeds, outputs):
            both.wait()
            return super().run(feeds, outputs)

    batcher = await make(items=1, sessions=[Together(), Together()])
    assert sums(await ask(batcher, [item(number) for number in range(10)])) == list(range(10))


async def test_what_no_batch_can_hold_is_refused_at_the_door(make):
    batcher = await make(tokens=10)
    with pytest.raises(InvalidRequest, match=r"texts\[1\]: found 11 tokens"):
        await ask(batcher, [item(1), item(*range(11))], field="texts")


async def test_a_cancelled_caller_frees_its_place_before_it_runs(make, session, notes):
    batcher = await make()
    session.open.clear()
    running = asyncio.create_task(ask(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    gone = asyncio.create_task(ask(batcher, [item(2), item(3)]))
    await until(lambda: batcher.waiting_inputs == 2)
    gone.cancel()
    await until(gone.done)
    assert batcher.waiting_inputs == batcher.waiting_tokens == 0
    session.open.set()
    assert sums(await running) == [1]
    assert session.batches == [[[1]]]
    assert notes.counts == {"cancelled": 2}
    assert sums(await ask(batcher, [item(4)])) == [4]


async def test_an_expired_row_does_not_run(make, session, notes):
    batcher = await make()
    session.open.clear()
    running = asyncio.create_task(ask(batcher, [item(1)]))
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    with pytest.raises(DeadlineExceeded):
        await ask(batcher, [item(2)], RequestContext(deadline=time.monotonic() + 0.01))
    with pytest.raises(DeadlineExceeded):
        await ask(batcher, [item(3)], RequestContext(deadline=time.monotonic()))
    assert batcher.waiting_inputs == 0
    session.open.set()
    await running
    assert session.batches == [[[1]]]
    assert notes.counts == {"expired": 1}


async def test_a_deadline_is_kept_also_before_there_are_items(make, session):
    batcher = await make()
    with pytest.raises(DeadlineExceeded, match="passed before its answer"):
        async with batcher.reserve(2, RequestContext(deadline=time.monotonic() + 0.01)):
            await asyncio.Event().wait()  # what is never prepared
    assert (batcher.waiting_inputs, batcher.in_flight.count, session.batches) == (0, 0, [])


async def test_a_high_priority_overtakes(make, session):
    batcher = await make(items=1)
    session.open.clear()
    tasks = [asyncio.create_task(ask(batcher, [item(1)]))]
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    for number, priority in ((2, 0), (3, 9), (4, 1)):
        tasks.append(asyncio.create_task(ask(batcher, [item(number)], RequestContext(priority=priority))))
    await until(lambda: batcher.waiting_inputs == 3)
    session.open.set()
    await asyncio.gather(*tasks)
    order = [batch[0][0] for batch in session.batches]
    assert order.index(4) < order.index(3)
    assert sorted(order) == [1, 2, 3, 4]


async def test_a_high_priority_overtakes_the_batch_that_is_collated_already(make, session):
    batcher = await make(items=4)
    session.open.clear()
    tasks = [asyncio.create_task(ask(batcher, [item(1)]))]
    await until(lambda: batcher.waiting_inputs == 0 and batcher.running_inputs)
    tasks += [asyncio.create_task(ask(batcher, [item(*[1] * 16)])) for _ in range(4)]
    await until(lambda: session.collated == 2)
    tasks.append(asyncio.create_task(ask(batcher, [item(4)], RequestContext(priority=1))))
    await until(lambda: batcher.waiting_inputs == 5)
    session.open.set()
    await asyncio.gather(*tasks)
    assert [4] in [ids[:1] for ids in session.batches[1]]


async def test_who_waits_is_told_when_the_server_gives_up(make, session, notes):
    batcher = await make(items=1)
    session.open.clear()
    tasks = [asyncio.create_task(ask(batcher, [item(number)])) for number in range(4)]
    await asyncio.sleep(0)
    batcher.abort()
    found = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(answer) for answer in found] == [NotReady] * 4
    assert batcher.waiting_inputs == 0
    session.open.set()
    assert sums(await ask(batcher, [item(5)])) == [5]


async def test_draining_answers_who_is_in_and_lets_in_nobody(make, session):
    batcher = await make(items=1)
    session.open.clear()
    tokenised = asyncio.Event()

    async def tokenise_and_ask(number):
        async with batcher.reserve(1, RequestContext()) as reservation:
            await tokenised.wait()  # a request that has begun is in, though none of its items waits yet
            return await batcher.run([item(number)], reservation)

    tasks = [asyncio.create_task(tokenise_and_ask(number)) for number in range(4)]
    await asyncio.sleep(0)
    ending = asyncio.create_task(batcher.drain())
    await asyncio.sleep(0)
    with pytest.raises(NotReady, match="sums is being unloaded"):
        await ask(batcher, [item(9)])
    tokenised.set()
    await until(lambda: batcher.running_inputs)
    assert not ending.done()
    session.open.set()
    assert [sums(answer) for answer in await asyncio.gather(*tasks)] == [[0], [1], [2], [3]]
    await ending


async def test_the_observer_hears_of_rows_tokens_padding_and_time(make, notes):
    batcher = await make(max_delay_s=0.05)
    await ask(batcher, [item(1, 2, 3, 4), item(1, 2)])
    (facts,) = notes.batches
    assert (facts["items"], facts["tokens"], facts["padded_tokens"]) == (2, 6, 8)
    assert len(facts["queue_seconds"]) == 2
    assert facts["spent"].run_seconds > 0


async def test_a_request_spent_the_time_of_all_its_batches_and_waited_the_rest(make, notes):
    batcher = await make(items=2)
    begun = time.monotonic()
    await ask(batcher, [item(1), item(2), item(3)])
    seconds = time.monotonic() - begun
    (spent,) = notes.answers
    assert len(notes.batches) == 2
    assert spent.run_seconds == pytest.approx(sum(facts["spent"].run_seconds for facts in notes.batches))
    assert spent.split_seconds == pytest.approx(sum(facts["spent"].split_seconds for facts in notes.batches))
    assert spent.queue_seconds + spent.run_seconds + spent.split_seconds <= seconds
