"""An export from the source to the artifact: the steps, in order. Each step is a module of its own."""

from pathlib import Path

from export.artifact import graph_writer, store
from export.errors import ExportError
from export.graph.recipes import Recipe
from export.loading import Job, load
from export.parity import references
from export.precisions import Precision
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
            held_out_directory=job.source.directory if any(p.weights for p in targets.values()) else None,
            each=progress.each,
        )
        remarks.append(f"{len(known.cases)} cases")
        if known.evaluation_cases:
            remarks.append(f"{known.evaluation.inputs} inputs of {known.evaluation.file}")
    with store.staging(job.artifacts) as directory:
        for name, contents in loaded.files.items():
            (directory / name).write_bytes(contents)
        manifest.golden.cases = references.save_golden(directory / GOLDEN_TENSORS, recipe, known.cases)
        # fp32 comes first: a model that was converted to half precision stays in it.
        for target, precision in sorted(targets.items(), key=lambda chosen: chosen[1].datatype != "FP32"):
            manifest.graphs.append(graph_writer.make(directory, target, precision, recipe, known, progress))
        with progress.step("publish") as remarks:
            published = store.publish(directory, job.artifacts, manifest)
            remarks.append(f"{sum(file.bytes for file in manifest.files) / MILLION:.1f} MB")
    return published


def feasible_targets(recipe: Recipe, job: Job) -> tuple[dict[str, Precision], list[str]]:
    """The targets that the model can be exported for, and a remark about each that is left out.

    ExportError for an infeasible target if the user named the targets, or if no target is left.
    """
    reasons = {target: recipe.infeasible_reason(target, precision.name) for target, precision in job.targets.items()}
    left_out = [f"{target} left out: {reason}" for target, reason in reasons.items() if reason]
    if left_out and (job.all_targets or len(left_out) == len(reasons)):
        target, reason = next((target, reason) for target, reason in reasons.items() if reason)
        raise ExportError(f"--target {target}={job.targets[target].name}: {reason}")
    return {target: precision for target, precision in job.targets.items() if not reasons[target]}, left_out
