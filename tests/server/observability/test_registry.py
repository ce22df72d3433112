"""The registry that makes many updates at a time: no reader sees a metric without them."""

from concurrent.futures import ThreadPoolExecutor

from prometheus_client import Counter, generate_latest

from server.observability.prometheus import Metrics
from server.observability.registry import MAX_DEFERRED, Registry


def counted(registry):
    return registry.get_sample_value("tokens_total")


def test_updates_are_made_before_a_metric_is_read():
    registry = Registry()
    tokens = Counter("tokens", "Tokens.", registry=registry)
    registry.defer(tokens.inc, 2)
    assert counted(registry) == 2
    registry.defer(tokens.inc, 3)
    assert b"tokens_total 5.0" in generate_latest(registry)
    registry.defer(tokens.inc)
    assert b"tokens_total 6.0" in generate_latest(registry.restricted_registry(["tokens_total"]))


def test_updates_are_made_at_the_latest_when_there_are_many():
    registry, made = Registry(), []
    for number in range(MAX_DEFERRED):
        assert made == []
        registry.defer(made.append, number)
    assert made == list(range(MAX_DEFERRED))


def test_no_update_is_lost_or_made_twice_while_threads_read():
    registry = Registry()
    tokens = Counter("tokens", "Tokens.", registry=registry)

    def read(_):
        for _ in range(200):
            counted(registry)

    with ThreadPoolExecutor(4) as threads:
        reading = threads.map(read, range(3))
        for _ in range(5000):
            registry.defer(tokens.inc)
        list(reading)
    assert counted(registry) == 5000


def test_updates_of_an_unloaded_version_are_dropped():
    metrics = Metrics()
    observer = metrics.observe("gpt", "1")
    observer.step(kind="decode", sequences=1, tokens=1, seconds=0.1)
    metrics.forget("gpt", "1")
    observer.step(kind="decode", sequences=1, tokens=1, seconds=0.1)
    assert b'model="gpt"' not in generate_latest(metrics.registry)
