"""A closed-loop load: a number of clients, each of which sends its next request when the last one is answered."""

import random
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Request, Answer = TypeVar("Request"), TypeVar("Answer")


def all_answered(
    send: Callable[[Request], Answer], requests: Sequence[Request], concurrency: int
) -> tuple[float, list[Answer]]:
    """Seconds until every request was answered, and the answers in the order of the requests."""
    with ThreadPoolExecutor(concurrency) as pool:
        started = time.perf_counter()
        answers = list(pool.map(send, requests))
        return time.perf_counter() - started, answers


def log_uniform(least: int, most: int, count: int, seed: int = 0) -> list[int]:
    """Log-uniform lengths in random order: as many between 8 and 16 as between 256 and 512."""
    lengths = [round(least * (most / least) ** ((n + 0.5) / count)) for n in range(count)]
    random.Random(seed).shuffle(lengths)
    return lengths
