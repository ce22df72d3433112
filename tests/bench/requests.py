"""Requests for generation, new in each round and the same for every side, and the answers."""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from tests.bench.measure import Side
from tests.bench.processes import Peer


@dataclass(frozen=True)
class Requests:
    """Prompts, the number of tokens to generate, and the arrival times in seconds. Every prompt is unique."""

    prompts: list[list[int]]
    new_tokens: list[int]
    arrivals: list[float]

    @property
    def tokens(self) -> int:
        return sum(self.new_tokens)


@dataclass(frozen=True)
class Workload:
    """A kind of request; `make` draws the requests of one round."""

    name: str
    make: Callable[[np.random.Generator], Requests]

    def round(self, number: int) -> Requests:
        return self.make(np.random.default_rng([number, *self.name.encode()]))


@dataclass(frozen=True)
class Sizes:
    """The sizes of requests."""

    prompt: int  # tokens of each prompt, if all are equal
    new: int  # tokens of each continuation, if all are equal
    shortest: int  # of prompts and continuations, if they differ
    longest: int
    requests: int
    per_second: float  # of these, on average


SIZES = {
    "published": Sizes(prompt=64, new=64, shortest=8, longest=256, requests=32, per_second=4.0),
    "tiny": Sizes(prompt=16, new=16, shortest=4, longest=24, requests=8, per_second=100.0),
}


def streams(name: str, number: int, sizes: Sizes, vocabulary: int) -> Workload:
    """A number of equal requests at once."""

    def make(random: np.random.Generator) -> Requests:
        prompts = random.integers(1, vocabulary, (number, sizes.prompt)).tolist()
        return Requests(prompts, [sizes.new] * number, [0.0] * number)

    return Workload(name, make)


def poisson(name: str, sizes: Sizes, vocabulary: int) -> Workload:
    """Requests of all lengths that arrive one by one, in an open loop."""

    def make(random: np.random.Generator) -> Requests:
        lengths, new = random.integers(sizes.shortest, sizes.longest + 1, (2, sizes.requests))
        arrivals = random.exponential(1 / sizes.per_second, sizes.requests).cumsum()
        prompts = [random.integers(1, vocabulary, length).tolist() for length in lengths]
        return Requests(prompts, new.tolist(), (arrivals - arrivals[0]).tolist())

    return Workload(name, make)


class Answers:
    """The answers of each side in each round."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def side(self, workload: Workload, name: str, peer: Peer) -> Side:
        """A side whose rate is generated tokens per second."""
        numbers, found = count(), self._found.setdefault((workload.name, name), [])

        def run() -> float:
            requests = workload.round(next(numbers))
            answer = peer.ask(**asdict(requests))
            lengths = [len(tokens) for tokens in answer["tokens"]]
            assert lengths == requests.new_tokens, f"{name}: found continuations of {lengths} tokens"
            found.append(answer)
            return requests.tokens / answer["seconds"]

        return Side(name, run)

    def differing(self, workload: str, side: str, reference: str) -> tuple[int, int]:
        """How many continuations of a side differ from those of the reference, and how many there are."""
        pairs = zip(self._tokens(workload, side), self._tokens(workload, reference), strict=True)
        differs = [one != other for one, other in pairs]
        return sum(differs), len(differs)

    def waits(self, workload: str, side: str) -> tuple[list[float], list[float]]:
        """Seconds until the first token of each request, and between any two of its tokens."""
        times = [np.array(each) for answer in self._found[workload, side] for each in answer["times"]]
        return [each[0] for each in times], np.concatenate([np.diff(each) for each in times]).tolist()

    def _tokens(self, workload: str, side: str) -> Iterator[list[int]]:
        for answer in self._found.get((workload, side), []):
            yield from answer["tokens"]


def name_every_token(checkpoint: Path) -> int:
    """Give the tokenizer a name for each token of the model, as CTranslate2 needs it; returns the vocabulary size."""
    vocabulary: int = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
    path = checkpoint / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    names = tokenizer["model"]["vocab"]
    for token in set(range(vocabulary)) - set(names.values()):
        names[f"t{token}"] = token
    path.write_text(json.dumps(tokenizer))
    return vocabulary
