"""The prefix cache: which slots hold the keys and values of earlier prompts, and which of them a new one can use. Pure.

An idle slot keeps the prompt of its last request until the slot is needed. A request whose prompt has a common prefix
with one in an idle slot, or with that of a running request, copies the prefix and prefills the rest.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from server.arrays import Ids

MIN_PREFILL_TOKENS = 2  # never copied, because the kernels for a single token differ in the last bits


@dataclass(frozen=True)
class Copy:
    """Copy the keys and values of the first `tokens` tokens from one slot to another."""

    source: int
    target: int
    tokens: int


@dataclass
class Entry:
    """The prompt in an idle slot."""

    prompt: Ids  # (t,)
    last_use: int  # the larger, the later


class PrefixCache:
    """The prompts in idle slots, by slot. The least recently used entry is dropped first.

    A common prefix of fewer than `min_tokens` tokens is not worth a copy.
    """

    def __init__(self, slots: int, *, min_tokens: int) -> None:
        self.entries: dict[int, Entry] = {}
        self.slots = slots
        self._min_tokens = max(min_tokens, MIN_PREFILL_TOKENS)
        self._uses = 0

    def longest_match(self, prompt: Ids, running: Iterable[tuple[int, Ids]]) -> tuple[int, int]:
        """The slot with the longest usable prefix of `prompt` (t,), and its length in tokens; (-1, 0) if too short.

        `running` are the slots in use, each with the part of its prompt that is in the slot.
        """
        candidates = [*((slot, entry.prompt) for slot, entry in self.entries.items()), *running]
        lengths = [
            (min(common_prefix_length(prompt, other), len(prompt) - MIN_PREFILL_TOKENS), slot)
            for slot, other in candidates
        ]
        length, slot = max(lengths, default=(0, -1))
        if length < self._min_tokens:
            return -1, 0
        if slot in self.entries:
            self._touch(self.entries[slot])
        return slot, length

    def keep(self, slot: int, prompt: Ids) -> None:
        """The slot is idle now: keep its prompt (t,), unless it is a prefix of another entry."""
        if len(prompt) < self._min_tokens:
            return
        shared = {other: common_prefix_length(prompt, entry.prompt) for other, entry in self.entries.items()}
        for other, length in shared.items():
            if length == len(prompt):
                self._touch(self.entries[other])
                return
        for other, length in shared.items():
            if length == len(self.entries[other].prompt):
                del self.entries[other]
        self.entries[slot] = Entry(prompt, 0)
        self._touch(self.entries[slot])

    def vacate(self, slot: int, used: Collection[int]) -> list[Copy]:
        """Free a slot. Its entry moves to an empty slot or replaces an older entry, else it is dropped.

        The slots in `used` are left as they are.
        """
        entry = self.entries.pop(slot, None)
        if entry is None:
            return []
        last_uses = {other: self.entries[other].last_use if other in self.entries else 0 for other in range(self.slots)}
        targets = [
            other for other in last_uses if other != slot and other not in used and last_uses[other] < entry.last_use
        ]
        if not targets:
            return []
        target = min(targets, key=lambda other: (last_uses[other], -other))  # the lowest slots are needed first
        self.entries[target] = entry
        return [Copy(slot, target, len(entry.prompt))]

    def _touch(self, entry: Entry) -> None:
        self._uses += 1
        entry.last_use = self._uses


def common_prefix_length(one: Ids, other: Ids) -> int:
    """The number of equal tokens at the beginning of `one` (t,) and `other` (u,)."""
    length = min(len(one), len(other))
    different = one[:length] != other[:length]
    return int(different.argmax()) if different.any() else length
