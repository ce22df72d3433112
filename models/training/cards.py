"""The model card of a bundled model: purpose, data, scores and limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from models.training import corpus

TEXT_DATA = f"""\
English technical text that installed Python packages contain: the language reference in `pydoc_data`, the
docstrings of the standard library, and those of the packages below, read from their sources. Docstrings are cut into
paragraphs (one of prose, or one parameter with its description); code, tables, text that is not ASCII and anything
under {corpus.SHORTEST} characters are left out.

Whole modules and reference topics are held out: those whose name has a SHA-256 with a first byte below
{corpus.HELD_OUT_OF_256} (of 256). Every paragraph is kept once, compared without case, spaces and punctuation, and a
paragraph that occurs in training is dropped from what is held out. Modules about related things remain related:
expect lower scores on text of another kind. `held-out.txt` is a sample of it, a paragraph on each line: that of Python
(PSF-2.0), NetworkX (BSD-3-Clause) and SQLAlchemy (MIT).

| package | version | licence |
|---|---|---|
| Python | 3.11 | PSF-2.0 |
{"".join(f"| {name} | {version} | {licence} |{chr(10)}" for name, (version, _, licence) in corpus.PACKAGES.items())}"""

DIGITS_DATA = """\
The 1,797 handwritten digits of 8 × 8 pixels that come with scikit-learn (E. Alpaydin and C. Kaynak, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository, licence CC BY 4.0). A quarter of each digit, 450,
is held out by a fixed seed; the same person may have written digits on both sides. In training the digits are turned,
shifted, scaled, blurred, and shown half of the time in black on white. `held-out.safetensors` has those held out.
"""

DIGITS_USE = """\
For trying Affinity out: `example.png` is a held-out digit. One digit should fill most of the picture. The model was
trained on digits only, so it classifies any image as a digit, and its scores say little about other handwriting.
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The parts of a card that differ between models; the last three are known after the training."""

    name: str
    summary: str
    module: str
    data: str
    use: str
    scores: Mapping[str, str] = field(default_factory=dict)  # of the held-out data: name → value
    minutes: float = 0
    machine: str = ""

    def text(self, parameters: int, size_bytes: int) -> str:
        scores = "".join(f"| {what} | {value} |\n" for what, value in self.scores.items())
        return f"""\
# {self.name}

{self.summary}

{parameters:,} parameters, {size_bytes / 1e6:.1f} MB. Made by `python -m models.training.{self.module}` in
{self.minutes:.0f} minutes on a {self.machine}.

## Score

Measured on {date.today():%d %B %Y} with the weights in this directory, on data that was not used in training:

| held-out | |
|---|---|
{scores}
## Data

{self.data}
## Use

{self.use}
"""


def write(directory: Path, card: Card, *, parameters: int) -> None:
    size_bytes = sum(path.stat().st_size for path in directory.iterdir() if path.name != "README.md")
    (directory / "README.md").write_text(card.text(parameters, size_bytes), "utf-8")
