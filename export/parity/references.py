"""PyTorch's results in fp32: the references that every graph of an artifact is compared with."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save as serialised

from export.graph.quantise_cache import Largest, largest_values
from export.graph.recipes import Arrays, GptRecipe, Recipe
from export.parity import cases, decode, evaluation, held_out
from export.parity.cases import Case
from export.parity.held_out import Sample
from protos.artifact import INPUT, OUTPUT, golden_key
from protos.manifest_pb2 import Evaluation, Manifest


@dataclass(frozen=True)
class References:
    """Cases with PyTorch's results, and PyTorch's score on the held-out sample."""

    cases: list[Case]  # seeded random inputs
    generation: Case | None = None  # of GPT: a text of which every position is compared, step by step
    evaluation: Evaluation = field(default_factory=Evaluation)  # the user's own inputs, for the manifest
    evaluation_cases: tuple[Case, ...] = ()
    sample: Sample | None = None  # the held-out sample, for targets with quantised weights
    score: float = 0.0
    largest: Largest = ()  # the keys and values of GPT, for targets that quantise them


def compute(
    recipe: Recipe,
    manifest: Manifest,
    tokenizer: str | None,
    *,
    evaluate: Path | None = None,
    held_out_directory: Path | None = None,
    calibration: Sequence[Sequence[int]] = (),
    each: Callable[[list[Arrays]], Iterator[Arrays]] = iter,
) -> References:
    """Run PyTorch on all inputs that the graphs will be compared on.

    `evaluate` is a file with the user's own inputs, `held_out_directory` may hold a held-out sample, `calibration` are
    token ids of texts whose keys and values are measured, and `each` reports progress over the cases.
    """
    inputs = evaluation.inputs_for(recipe, manifest, tokenizer, evaluate) if evaluate else []
    sample = held_out.read(held_out_directory, recipe, manifest, tokenizer) if held_out_directory else None
    return References(
        cases=seeded_cases(recipe, manifest.text.max_length, each),
        generation=reference_case(recipe, decode.inputs_for(recipe)) if isinstance(recipe, GptRecipe) else None,
        evaluation=Evaluation(file=evaluate.name if evaluate else "", inputs=evaluation.count(inputs)),
        evaluation_cases=tuple(reference_case(recipe, arrays) for arrays in inputs),
        sample=sample,
        score=sample.score(lambda arrays: reference_case(recipe, arrays).reference) if sample else 0.0,
        largest=largest_values(recipe, calibration) if isinstance(recipe, GptRecipe) and calibration else (),
    )


def seeded_cases(
    recipe: Recipe, max_length: int, each: Callable[[list[Arrays]], Iterator[Arrays]] = iter
) -> list[Case]:
    """Seeded inputs with PyTorch's results in fp32. The golden cases come first."""
    return [reference_case(recipe, inputs) for inputs in each(cases.inputs_for(recipe, max_length))]


def reference_case(recipe: Recipe, inputs: Arrays) -> Case:
    """One set of inputs with PyTorch's result."""
    with torch.inference_mode():
        result = recipe.reference({name: torch.from_numpy(array) for name, array in inputs.items()})
    return Case(inputs, result.numpy().astype(np.float32))


def save_golden(path: Path, recipe: Recipe, seeded: list[Case]) -> int:
    """Write the golden cases; returns their number. The server runs them on its provider before it serves the model."""
    arrays: Arrays = {}
    chosen = cases.golden(seeded)
    for number, case in enumerate(chosen):
        arrays |= {golden_key(number, INPUT, name): array for name, array in case.inputs.items()}
        arrays[golden_key(number, OUTPUT, recipe.result)] = case.reference
    path.write_bytes(serialised(arrays))  # for a full disk, the library's own save_file raises no OSError
    return len(chosen)
