"""The model card of a bundled model: purpose, data, scores and limits."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from models.training import corpus

TEXT_DATA = f"""\
English technical text that installed Python packages contain: the language reference in `pydoc_data`, the
docstrings of the standard library, and those of the packages below, read from their sources. Docstrings are split
into paragraphs (of prose, or of one parameter with its description). Code, tables, text that is not ASCII, and
paragraphs of fewer than {corpus.SHORTEST} characters are left out.

Whole modules and reference topics are held out: {corpus.HELD_OUT_OF_256} of 256, chosen by the SHA-256 of their names.
Paragraphs are compared without case, spaces and punctuation: each is kept only once, and not held out if it also occurs
in the training data. Held-out modules are similar to others in the training data, so expect lower scores on other kinds
of text. `held-out.txt` has the held-out paragraphs of Python (PSF-2.0), NetworkX (BSD-3-Clause) and SQLAlchemy (MIT),
one on each line.

| package | version | licence |
|---|---|---|
| Python | 3.11 | PSF-2.0 |
{"".join(f"| {name} | {version} | {licence} |{chr(10)}" for name, (version, _, licence) in corpus.PACKAGES.items())}"""

DIGITS_DATA = """\
The 1,797 handwritten digits of 8 × 8 pixels that come with scikit-learn (E. Alpaydin and C. Kaynak, "Optical
Recognition of Handwritten Digits", UCI Machine Learning Repository, licence CC BY 4.0). A quarter of each digit, 450,
is held out by a fixed seed; the same person may have written digits of both parts. In training the digits are
rotated, shifted, scaled and blurred, and half of them are black on white.
`held-out.safetensors` has the held-out digits.
"""

DIGITS_USE = """\
For trying Affinity: `example.png` is a held-out digit. A digit should fill most of the image. The model was
trained on digits only, so it classifies any image as a digit, and its scores say little about other handwriting.
"""


@dataclass(frozen=True, kw_only=True)
class Card:
    """The parts of a card that differ between models. The last three are known after the training."""

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

{parameters:,} parameters, {size_bytes / 1e6:.1f} MB. Trained by `python -m models.training.{self.module}` in
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
