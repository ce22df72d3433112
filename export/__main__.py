"""The command line, `python -m export SOURCE…`. It imports torch only if there is something to export."""

import argparse
import json
import os
import sys
from pathlib import Path

from export import families, precisions, standard_output
from export.artifact import store
from export.errors import ExportError
from export.inputs import samples
from export.precisions import Targets
from export.progress import Progress
from export.sources import lookup
from export.sources.lookup import Source
from protos.artifact import MANIFEST, MANIFEST_DIGEST, TASKS

INSPECTIONS = ("inspect", "verify", "seal")
FAILED, MISUSED = 1, 2  # exit statuses


def export_parser() -> argparse.ArgumentParser:
    """The options of an export."""
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export models to artifacts: ONNX graphs for the server, proven equal to their PyTorch source.",
        epilog="python -m export inspect ARTIFACT [--json] shows what an artifact contains. python -m export verify "
        "ARTIFACT [--json] checks that it is unchanged, and runs its graphs on the providers of this machine. "
        "python -m export seal ARTIFACT [--json] does the same for an artifact whose manifest.json was edited, and "
        "accepts the change.",
    )
    parser.add_argument(
        "sources",
        nargs="+",
        metavar="SOURCE",
        help="the name of a bundled model, a directory in the Hugging Face layout, a hub id (owner/name[@revision]) "
        "or nanoGPT's ckpt.pt",
    )
    parser.add_argument(
        "--list",
        action="store_true",
        help="list what can be exported and which files each family needs; with --json as JSON",
    )
    parser.add_argument(
        "--name", help="the name of the model on the server (with one SOURCE only; default: the name of the source)"
    )
    parser.add_argument(
        "--artifacts",
        type=Path,
        default=Path(os.environ.get("AFFINITY_ARTIFACTS") or "artifacts"),
        metavar="DIR",
        help="the directory for artifacts (default: AFFINITY_ARTIFACTS, or artifacts if that is not set)",
    )
    parser.add_argument(
        "--target",
        metavar="TARGET[=PRECISION],…",
        help=f"the machines to export graphs for (default: {precisions.DEFAULT}, without those that the model cannot "
        "be exported for); precisions of cpu: fp32, int8-weights, int4-weights, int8-dynamic, for GPT also each of "
        "them with keys and values in int8 (fp32+int8-kv, …); of cuda: fp16 and, except for GPT, fp32; a target may be "
        "named several times with different precisions, its default first",
    )
    add_model_options(parser)
    add_precision_options(parser)
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """The options for reading the source."""
    parser.add_argument(
        "--task",
        choices=TASKS,
        help="the task of the model, for a config.json that names no architecture or an unknown one; together with its "
        "model_type, the task determines the architecture",
    )
    parser.add_argument(
        "--ignore-unused",
        action="store_true",
        help="export a model even if its file has tensors that it does not use, and list them (not needed for known "
        "leftovers of training and heads of other tasks)",
    )
    parser.add_argument(
        "--tokenizer",
        metavar="SOURCE",
        help="a tokenizer instead of the source's own: a directory, a file (tokenizer.json, nanoGPT's meta.pkl) or a "
        "hub id",
    )
    parser.add_argument(
        "--image-size",
        type=int,
        metavar="PIXELS",
        help="the side of a ViT's input images, if it differs from that in training; the positions are interpolated",
    )


def add_precision_options(parser: argparse.ArgumentParser) -> None:
    """The options for precisions and for measuring their error."""
    parser.add_argument(
        "--head-precision",
        choices=precisions.BITS,
        help="for quantised precisions: that of the head's matrices, which compute the logits (default: int8)",
    )
    parser.add_argument(
        "--evaluate",
        type=Path,
        metavar="FILE",
        help="measure the error on your own inputs, too: a file with a text on each line, or an image, a directory of "
        f"images or a list of image files (the first {samples.MAX_INPUTS})",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="BOUND",
        help="for quantised precisions: the largest error allowed, root mean square over standard deviation "
        "(default: "
        + ", ".join(f"{p.tolerance:g} for {p.name}" for p in precisions.PRECISIONS.values() if p.weights)
        + ")",
    )


def inspection_parser() -> argparse.ArgumentParser:
    """The options of `inspect`, `verify` and `seal`."""
    parser = argparse.ArgumentParser(prog="python -m export", description="Inspect, verify or seal an artifact.")
    parser.add_argument(
        "command",
        choices=INSPECTIONS,
        help="show what it contains, check that it is unchanged, or check it and accept an edited manifest.json",
    )
    parser.add_argument("artifact", type=Path, metavar="ARTIFACT", help="a directory DIR/<name>/<version>")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the command. The exit status is 0, 1 for a failure, or 2 for invalid options."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] and arguments[0] in INSPECTIONS:
        return run_inspection(arguments)
    if "--list" in arguments:
        return print_result(families.account(), families.describe(), as_json="--json" in arguments)
    options = export_parser().parse_args(arguments)
    progress, done = Progress(), list[str]()
    try:
        chosen = precisions.DEFAULT if options.target is None else options.target
        targets = precisions.parse(chosen, head=options.head_precision, tolerance=options.tolerance)
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
    except BrokenPipeError:  # of standard output
        raise
    except OSError as error:
        return report(system_error(error, options.artifacts), FAILED)
    except KeyboardInterrupt:
        before = f"; finished before: {', '.join(done)}" if done else ""
        return report(ExportError(f"interrupted, nothing was written of {options.sources[len(done)]}{before}"), FAILED)
    return 0


def export_one(source: Source, options: argparse.Namespace, targets: Targets, progress: Progress) -> None:
    """Export one source, unless its newest artifact was exported from the same files with the same options."""
    name, artifacts = options.name or source.name, options.artifacts
    store.check_name(name)
    digest, chosen = source.digest(), options_text(options, targets)
    if source.revision:
        progress.say(f"{name}: {source.location} is commit {source.revision}")
    try:
        found = store.newest(artifacts, name)
    except ExportError as damage:
        progress.say(f"{name}: {damage}")
        found = None
    if found is not None:
        directory, manifest = found
        if (manifest.source.digest, manifest.source.options) == (digest, chosen):
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


def options_text(options: argparse.Namespace, targets: Targets) -> str:
    """The options that change the result, as the manifest has them."""
    text = precisions.spell(targets)
    if options.image_size is not None:
        text += f",image-size={options.image_size}"
    if options.task:
        text += f",task={options.task}"
    if options.ignore_unused:
        text += ",ignore-unused"
    if options.evaluate:
        text += f"; evaluated on {options.evaluate.name} (sha256 {samples.digest(options.evaluate)[:12]})"
    return text


def run_inspection(arguments: list[str]) -> int:
    """Show what an artifact contains, check that it is unchanged, or check it and accept an edited manifest."""
    options = inspection_parser().parse_args(arguments)
    from export.artifact import inspection  # imports onnx

    try:
        if options.command == "inspect":
            account = inspection.inspect(options.artifact)
            lines = inspection.describe(account)
        else:
            check = inspection.verify if options.command == "verify" else inspection.seal
            account = check(options.artifact)
            lines = inspection.describe_verification(account)
            lines += [f"  {MANIFEST_DIGEST} has the digest of {MANIFEST}"] if options.command == "seal" else []
    except ExportError as error:
        return report(error, FAILED)
    except OSError as error:
        return report(system_error(error, options.artifact), FAILED)
    return print_result(account, lines, as_json=options.json)


def print_result(account: object, lines: list[str], *, as_json: bool) -> int:
    """Print a result as JSON or as lines of text."""
    print(json.dumps(account, indent=2) if as_json else "\n".join(lines))
    return 0


def system_error(error: OSError, path: Path) -> ExportError:
    """A full disk, a missing permission and so on, with the file or, if the error names none, with `path`."""
    return ExportError(f"{error.filename or path}: {error.strerror or error}")


def report(error: ExportError, status: int) -> int:
    """Print an error and return the exit status."""
    print(f"error: {error}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(standard_output.run(main))
