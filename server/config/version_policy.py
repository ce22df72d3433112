"""Which versions of a model are served. Pure: knows numbers, no files and no sessions."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

EXPECTED = "latest, all, latest:N, or numbers with + between them, such as 1+3"


@dataclass(frozen=True)
class Versions:
    """Those `named`; if none are, the `newest` so many, or all if that is 0.

    >>> Versions.parse("latest:2").choose([1, 3, 7])
    (3, 7)
    """

    newest: int = 1
    named: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> "Versions":
        """`latest`, `latest:2`, `all` or `1+3`. ValueError for anything else."""
        if text in ("latest", "all"):
            return cls(newest=1 if text == "latest" else 0)
        if count := re.fullmatch(r"latest:([1-9]\d*)", text, re.ASCII):
            return cls(newest=int(count[1]))
        if re.fullmatch(r"\d+([+,]\d+)*", text, re.ASCII):
            return cls(named=tuple(sorted({int(number) for number in re.split("[+,]", text)})))
        raise ValueError(f"found {text!r}, expected {EXPECTED}")

    def choose(self, found: Iterable[int]) -> tuple[int, ...]:
        """Which of those that were found, the lowest first. Of those named, some may be missing."""
        ordered = sorted(found)
        if self.named:
            return tuple(number for number in ordered if number in self.named)
        return tuple(ordered[-self.newest :])  # all of them, if that is 0

    def __str__(self) -> str:
        if self.named:
            return "+".join(map(str, self.named))
        return {0: "all", 1: "latest"}.get(self.newest, f"latest:{self.newest}")
