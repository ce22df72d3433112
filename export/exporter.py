"""An export from the source to the artifact: the steps, in order. Each step is a module of its own."""

from pathlib import Path

from export.artifact import graph_writer, store
from export.errors import ExportError
from export.graph.recipes import Recipe
from export.loading import Job, load
from export.parity import references
from export.precisions import Targets, ordered
from export.progress import Progress
from protos.artifact import GOLDEN_TENSORS

MILLION = 1e6


def export(job: Job, progress: Progress) -> Path:
    """Write the next version of `job.name` and return its directory. After an ExportError nothing is written."""
    with progress.step("read the source") as remarks:
        loaded = load(job)
        recipe, manifest = loaded.recipe, loaded.manifest
        parameters = sum(parameter.numel() for parameter in recipe.parameters())
        remarks.append(f"{recipe.architecture}, {recipe.task}, {parameters / MILLION:.1f} M weights")
        remarks += loaded.remarks
        targets, left_out = feasible_targets(recipe, job)
        remarks += left_out
    with progress.step("run PyTorch") as remarks:
        known = references.compute(
            recipe,
            manifest,
            loaded.tokenizer,
            evaluate=job.evaluate,
            held_out_directory=job.source.directory if any(p.weights for _, p in targets) else None,
            calibration=loaded.texts if any(p.cache for _, p in targets) else (),
            each=progress.each,
        )
        remarks.append(f"{len(known.cases)} cases")
        if known.evaluation_cases:
            remarks.append(f"{known.evaluation.inputs} inputs of {known.evaluation.file}")
    with store.staging(job.artifacts) as directory:
        for name, contents in loaded.files.items():
            (directory / name).write_bytes(contents)
        manifest.golden.cases = references.save_golden(directory / GOLDEN_TENSORS, recipe, known.cases)
        manifest.graphs.extend(graph_writer.make_all(directory, ordered(targets), recipe, known, progress))
        with progress.step("publish") as remarks:
            published = store.publish(directory, job.artifacts, manifest)
            remarks.append(f"{sum(file.bytes for file in manifest.files) / MILLION:.1f} MB")
    return published


def feasible_targets(recipe: Recipe, job: Job) -> tuple[Targets, list[str]]:
    """The targets and precisions that the model can be exported for, and a remark about each that is left out.

    ExportError for an infeasible one if the user named the targets, or if none is left.
    """
    feasible, left_out = Targets(), list[str]()
    for target, precision in job.targets:
        reason = recipe.infeasible_reason(target, precision.name)
        if reason is None:
            feasible.append((target, precision))
        elif job.all_targets:
            raise ExportError(f"--target {target}={precision.name}: {reason}")
        else:
            left_out.append(f"{target}={precision.name} left out: {reason}")
    if not feasible:
        raise ExportError(f"--target: no target is left: {'; '.join(left_out)}")
    return feasible, left_out
