"""`python -m export SOURCE…`: the command line. Torch is imported only once it is known that there is work to do."""

import argparse
import json
import os
import sys
from pathlib import Path

from export import families, precisions
from export.artifact import store
from export.errors import ExportError
from export.inputs import samples
from export.precisions import Precision
from export.progress import Progress
from export.sources import lookup
from export.sources.lookup import Source
from protos.artifact import FORMAT_VERSION

FAILED, MISUSED = 1, 2


def parser() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Make artifacts of models: graphs for the server, proven equal to their PyTorch source.",
        epilog="python -m export inspect|verify ARTIFACT [--json] looks at an artifact: what is inside, or whether it "
        "still is as it was exported, on every provider of this machine that its graphs are made for.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="a bundled model's name, a directory in the Hugging Face layout, a hub id (owner/name[@revision]), or "
        "nanoGPT's ckpt.pt",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="say what can be exported, and what each family needs; with --json for machines",
    )
    parser.add_argument("--name", help="what the server calls the model (one SOURCE only; default: the source's name)")
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=Path(os.environ.get("AFFINITY_ARTIFACTS") or "artifacts"),
        metavar="DIR",
        help="where artifacts are kept (default: AFFINITY_ARTIFACTS, or else artifacts)",
    )
    parser.add_argument(
        "--target",
        metavar="TARGET[=PRECISION],…",
        help=f"the machines to make graphs for (default: {precisions.DEFAULT}, or those of them that the model can be "
        "made for); cpu takes fp32, int8-weights and int4-weights, cuda takes fp16 and, but for GPT, fp32",
    )
    parser.add_argument(
        "--task",
        choices=families.TASKS,
        help="what the model is for, where config.json names no architecture or one that is not known: its model_type "
        "and this stand in for it",
    )
    parser.add_argument(
        "--ignore-unused",
        action="store_true",
        help="export a model whose file holds tensors that it does not use, and say which (known leftovers of "
        "training and heads of other tasks never need this)",
    )
    parser.add_argument(
        "--head-precision",
        choices=precisions.BITS,
        help="of weight-only precisions: how the last matrices, which make the words or the classes, are stored "
        "(default: int8)",
    )
    parser.add_argument(
        "--evaluate",
        type=Path,
        metavar="FILE",
        help="state the error on inputs of your own, too: a file with a text on each line, or an image, a directory of "
        f"images or a list of image files (the first {samples.MOST})",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="BOUND",
        help="of weight-only precisions: the largest error allowed, root mean square over standard deviation "
        "(default: "
        + ", ".join(f"{p.tolerance:g} for {p.name}" for p in precisions.PRECISIONS.values() if p.weights)
        + ")",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="SOURCE",
        help="a tokenizer in place of the source's own: a directory, a file (tokenizer.json, nanoGPT's meta.pkl), or "
        "a hub id",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="the side of the images that a ViT is to look at, if not that of its training: positions are interpolated",
    )
    return parser


def looker() -> argparse.ArgumentParser:
    """The options of `inspect` and `verify`."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Look at artifacts.")
    parser.add_argument("command", choices=["inspect", "verify"], help="show what is inside, or check that it is whole")
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="a directory DIR/<name>/<version>")
    parser.add_argument("--json", action="store_true", help="for machines")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Do what was asked for; the exit status is 0, 1 if it failed, 2 if the command made no sense."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["inspect"], ["verify"]):
        return look(arguments)
    if "--list" in arguments:
        return say(families.account(), families.described(), as_json="--json" in arguments)
    options = parser().parse_args(arguments)
    progress, done = Progress(), list[str]()
    try:
        targets = precisions.parse(
            options.target or precisions.DEFAULT, head=options.head_precision, tolerance=options.tolerance
        )
        if options.name and len(options.sources) > 1:
            raise ExportError(f"--name: found {len(options.sources)} sources, expected one")
        if options.name:
            store.check_name(options.name)
    except ExportError as error:
        return report(error, MISUSED)
    try:
        for location in options.sources:
            source = lookup.resolve(location, options.tokenizer)
            export_one(source, options, targets, progress)
            done.append(location)
    except ExportError as error:
        return report(error, FAILED)
    except OSError as error:
        return report(of_system(error, options.artifacts), FAILED)
    except KeyboardInterrupt:
        before = f"; finished before: {', '.join(done)}" if done else ""
        return report(ExportError(f"interrupted, nothing was written of {options.sources[len(done)]}{before}"), FAILED)
    return 0


def export_one(source: Source, options: argparse.Namespace, targets: dict[str, Precision], progress: Progress) -> None:
    """Export one source, unless its newest artifact was made of the same files with the same options."""
    name, artifacts = options.name or source.name, options.artifacts
    store.check_name(name)
    digest, chosen = source.digest(), precisions.spell(targets)
    if options.image_size is not None:
        chosen += f",image-size={options.image_size}"
    if options.task:
        chosen += f",task={options.task}"
    if options.ignore_unused:
        chosen += ",ignore-unused"
    if options.evaluate:
        chosen += f"; evaluated on {options.evaluate.name} (sha256 {samples.digest(options.evaluate)[:12]})"
    if source.revision:
        progress.say(f"{name}: {source.location} is commit {source.revision}")
    found = store.newest(artifacts, name)
    if found is not None:
        directory, manifest = found
        made_of = (manifest.format_version, manifest.source.digest, manifest.source.options)
        if made_of == (FORMAT_VERSION, digest, chosen):
            progress.say(f"{name}: {directory} is up to date")
            return
    progress.say(f"{name}: {source.location} → {artifacts / name}")
    from export.exporter import export  # imports torch, which takes seconds that an up-to-date artifact does not need
    from export.loading import Job

    job = Job(
        source,
        name,
        artifacts,
        targets,
        digest=digest,
        options=chosen,
        image_size=options.image_size,
        evaluate=options.evaluate,
        task=options.task,
        ignore_unused=options.ignore_unused,
        all_targets=options.target is not None,
    )
    directory = export(job, progress)
    progress.say(f"{name}: {directory} is ready")


def look(arguments: list[str]) -> int:
    """Show what is inside an artifact, or check that it still is what was exported."""
    options = looker().parse_args(arguments)
    from export.artifact import inspection  # brings onnx with it

    try:
        if options.command == "inspect":
            account = inspection.inspect(options.artifact)
            lines = inspection.described(account)
        else:
            account = inspection.verify(options.artifact)
            lines = inspection.verified(account)
    except ExportError as error:
        return report(error, FAILED)
    except OSError as error:
        return report(of_system(error, options.artifact), FAILED)
    return say(account, lines, as_json=options.json)


def say(account: object, lines: list[str], *, as_json: bool) -> int:
    """The same for machines or for a reader."""
    print(json.dumps(account, indent=2) if as_json else "\n".join(lines))
    return 0


def of_system(error: OSError, path: Path) -> ExportError:
    """A full disk, a missing permission and the like, with the file or, where there is none, what was worked on."""
    return ExportError(f"{error.filename or path}: {error.strerror or error}")


def report(error: ExportError, status: int) -> int:
    """Say what went wrong, and hand back the exit status."""
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
