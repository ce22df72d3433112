"""The prefix cache: which slots hold the keys and values of earlier prompts, and which of them a new one can use. Pure.

An idle slot keeps the prompt of its last request until the slot is needed. A request whose prompt has a common prefix
with one in an idle slot, or with that of a running request, copies the prefix and prefills the rest.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from server.arrays import Ids

READ_ANEW = 2  # tokens, at least: one alone is computed by other kernels, and differs in the last bits


@dataclass(frozen=True)
class Copy:
    """The keys and values of the first `tokens` tokens of one slot go to another."""

    source: int
    target: int
    tokens: int


@dataclass
class Kept:
    """The prompt in an idle slot."""

    prompt: Ids
    used: int  # the larger, the later


class Prefixes:
    """What the unused slots keep. The least recently used goes first.

    `least` is how many tokens two prompts must share for it to be worth a copy.
    """

    def __init__(self, slots: int, *, least: int) -> None:
        self.kept: dict[int, Kept] = {}
        self.slots = slots
        self._least = max(least, READ_ANEW)
        self._uses = 0

    def best(self, prompt: Ids, running: Iterable[tuple[int, Ids]]) -> tuple[int, int]:
        """The slot whose prompt shares most with this one, and how many tokens; (-1, 0) if it is not worth it.

        `running` are the slots in use, each with as much of its prompt as it has read.
        """
        candidates = [*((slot, kept.prompt) for slot, kept in self.kept.items()), *running]
        shared = [(min(common(prompt, other), len(prompt) - READ_ANEW), slot) for slot, other in candidates]
        tokens, slot = max(shared, default=(0, -1))
        if tokens < self._least:
            return -1, 0
        if slot in self.kept:
            self._touch(self.kept[slot])
        return slot, tokens

    def keep(self, slot: int, prompt: Ids) -> None:
        """The slot is idle now: keep its prompt, unless a kept prompt begins with it."""
        if len(prompt) < self._least:
            return
        for kept in self.kept.values():
            if common(prompt, kept.prompt) == len(prompt):
                self._touch(kept)
                return
        for other in [other for other, kept in self.kept.items() if common(prompt, kept.prompt) == len(kept.prompt)]:
            del self.kept[other]
        self.kept[slot] = Kept(prompt, 0)
        self._touch(self.kept[slot])

    def vacate(self, slot: int, taken: Collection[int]) -> list[Copy]:
        """Make room in a slot: what it keeps moves to where something older, or nothing, is kept; or it is forgotten.

        `taken` are slots that must stay as they are.
        """
        leaving = self.kept.pop(slot, None)
        if leaving is None:
            return []
        ages = {other: self.kept[other].used if other in self.kept else 0 for other in range(self.slots)}
        places = [other for other in ages if other != slot and other not in taken and ages[other] < leaving.used]
        if not places:
            return []
        place = min(places, key=lambda place: (ages[place], -place))  # the lowest free ones are the next to be needed
        self.kept[place] = leaving
        return [Copy(slot, place, len(leaving.prompt))]

    def _touch(self, kept: Kept) -> None:
        self._uses += 1
        kept.used = self._uses


def common(one: Ids, other: Ids) -> int:
    """How many tokens both begin with."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length
