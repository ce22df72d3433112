"""`python -m tests.bench.jpegs`: from JPEG files to `pixel_values`, ours beside transformers and torchvision.

The steps are those of ViT-B/16: resize to 224 × 224 pixels, bilinear with antialiasing, rescale and normalise. One
thread each, and each side in a process of its own: the sides take turns. Peers that are not there are skipped by name.
"""

import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.bench import options
from tests.bench.inputs import PHOTOGRAPH, photographs
from tests.bench.measure import Result, Side, Target, in_rounds, machine, table, verdicts
from tests.bench.processes import OURS, TORCHVISION, Missing, Peer, peer

OUR_SIDE, IN_FULL, TRANSFORMERS, VISION = "ours", "ours, decoded in full", "transformers", "torchvision"
PEERS = {
    OUR_SIDE: (OURS, "own_jpegs", ("4",)),
    IN_FULL: (OURS, "own_jpegs", ("0",)),
    TRANSFORMERS: (OURS, "transformers_jpegs", ()),
    VISION: (TORCHVISION, "torchvision_jpegs", ()),
}
SIZES = (PHOTOGRAPH, (2560, 1920), (4032, 3024))  # pixels
PIXELS_IN_A_ROUND = 50_000_000


def workload(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]}"


def side(name: str, opened: Peer, files: list[Path], repeats: int) -> Side:
    """Prepares the files `repeats` times, in files per second."""

    def run() -> float:
        seconds = opened.ask(files=[str(file) for file in files], repeats=repeats)["seconds"]
        return len(files) * repeats / seconds

    return Side(name, run)


def main() -> None:
    parser = options.parser("jpegs", __doc__)
    options.add_rounds(parser, 7)
    parser.add_argument("--files", type=int, default=4, help="different files of each size (4)")
    parser.add_argument("--pixels", type=int, default=PIXELS_IN_A_ROUND, help="pixels in a round (50 million)")
    given = parser.parse_args()
    results: list[Result] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        opened, skipped = {}, {}
        for name, (environment, module, arguments) in PEERS.items():
            try:
                opened[name] = stack.enter_context(peer(environment, module, *arguments))
            except Missing as reason:
                skipped[name] = f"skipped: {reason}"
        for size in SIZES:
            files = photographs(folder, given.files, size=size)
            repeats = max(1, given.pixels // (size[0] * size[1] * len(files)))
            sides = [side(name, process, files, repeats) for name, process in opened.items()]
            results += in_rounds(workload(size), sides, given.rounds)
            results += [Result(workload(size), name, note=reason) for name, reason in skipped.items()]
    targets = [Target(workload(size), OUR_SIDE, name, 1) for size in SIZES for name in (TRANSFORMERS, VISION)]
    print(f"\n{machine()}; {given.rounds} rounds, one thread\n")
    print(table(results, "files per second"), verdicts(results, targets), sep="\n\n")


if __name__ == "__main__":
    main()
