"""Chooses the versions of a model to serve. Pure: works on numbers, not on files or sessions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

EXPECTED = "latest, all, latest:N, or numbers with + between them, such as 1+3"


@dataclass(frozen=True)
class Versions:
    """The `named` versions; without names, the `newest` ones, or all if `newest` is 0.

    >>> Versions.parse("latest:2").choose([1, 3, 7])
    (3, 7)
    """

    newest: int = 1
    named: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Versions":
        """Parse `latest`, `latest:2`, `all` or `1+3`. Raises ValueError for anything else."""
        if text in ("latest", "all"):
            return cls(newest=1 if text == "latest" else 0)
        if count := re.fullmatch(r"latest:([1-9]\d*)", text, re.ASCII):
            return cls(newest=int(count[1]))
        if re.fullmatch(r"\d+([+,]\d+)*", text, re.ASCII):
            return cls(named=tuple(sorted({int(number) for number in re.split("[+,]", text)})))
        raise ValueError(f"found {text!r}, expected {EXPECTED}")

    def choose(self, found: Iterable[int]) -> tuple[int, ...]:
        """Choose from the versions found, in ascending order. Named versions that were not found are left out."""
        ordered = sorted(found)
        if self.named:
            return tuple(number for number in ordered if number in self.named)
        return tuple(ordered[-self.newest :])  # all versions if newest is 0

    def __str__(self) -> str:
        if self.named:
            return "+".join(map(str, self.named))
        return {0: "all", 1: "latest"}.get(self.newest, f"latest:{self.newest}")
