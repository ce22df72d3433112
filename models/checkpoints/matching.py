"""Match the tensors of a file with those that a model needs.

All problems are reported together: the first few of each kind by name, and their number.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from models.checkpoints.errors import CheckpointError
from models.checkpoints.layout import Layout, unwrapped

NAMED = 3  # tensors of each kind of problem that a message names
MISSING, MISSHAPEN, LEFT_OVER = "missing", "misshapen", "left over"
KINDS = (MISSING, MISSHAPEN, "not a weight", "twice", "untied", LEFT_OVER)
CLASSES = ("classifier.weight", "classifier.out_proj.weight", "cls_classifier.weight", "head.weight")
Found = dict[str, tuple[str, Tensor]]  # by the name in the table: the spelling in the file, and the tensor
Problems = dict[str, list[str]]  # by kind


@dataclass(frozen=True)
class Match:
    """The tensors that a model needs, by the names of the table, and those that were ignored."""

    tensors: dict[str, Tensor]
    ignored: list[str] = field(default_factory=list)


def match_tensors(
    model: str,
    names: Layout,
    expected: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    *,
    file: str,
    ignore_unused: bool,
) -> Match:
    """The tensors of `file` that `model` needs: those of the names and shapes `expected`, and no others.

    The parts of wrappers are removed from names if more tensors match without them. CheckpointError if a tensor is
    missing, of another shape, or left over; `ignore_unused` allows tensors that are left over.
    """
    found, problems = sort_out(names, tensors, expected, strip=str)
    if not expected.keys() <= found.keys():
        without = sort_out(names, tensors, expected, strip=unwrapped)
        if len(expected.keys() - without[0].keys()) < len(expected.keys() - found.keys()):
            found, problems = without
    ignored = [found.pop(name)[0] for name in sorted(found.keys() - expected.keys())] if ignore_unused else []
    compare(names, found, expected, problems)
    if problems:
        raise CheckpointError(describe(model, file, problems))
    return Match({name: tensor for name, (_, tensor) in found.items()}, ignored)


def are_untied(names: Layout, tensors: Mapping[str, Tensor]) -> bool:
    """Whether the file has a matrix of the head that differs from the token embedding."""
    if not names.copies:
        return False
    plain = {names.plain(unwrapped(spelling)): tensor for spelling, tensor in tensors.items()}
    copy, original = (plain.get(name) for name in names.copies[0])
    return copy is not None and original is not None and not equal(copy, original)


def with_own_bias(names: Layout, tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The tensors, with the same bias of the head under both of its names, as transformers ties it.

    The matrix of the head and its bias are tied independently of each other. If a file has both biases, and they
    differ, the one beside the matrix counts.
    """
    spelled = {names.plain(unwrapped(spelling)): spelling for spelling in tensors}
    for own, shared in names.copies[1:]:
        found = spelled.get(own) or spelled.get(shared)
        if found is not None:
            both = (spelled.get(name, names.full(name)) for name in (own, shared))
            tensors = {**tensors, **dict.fromkeys(both, tensors[found])}
    return tensors


def missing_own_bias(names: Layout, tensors: Mapping[str, Tensor]) -> str | None:
    """The name of the bias beside the matrix of an untied head, if the file has the matrix without it.

    transformers 4 saves such files: it shares this bias with the one under the other name, and writes it once.
    transformers 5 reads neither name for the other in an untied head, and sets the missing bias to zero.
    """
    spelled = {names.plain(unwrapped(spelling)): spelling for spelling in tensors}
    for row in names.rows:
        bias, matrix = row.published, row.published.replace("decoder.bias", "decoder.weight")
        if row.ours == ("head.bias",) and bias != matrix and bias not in spelled and matrix in spelled:
            return spelled[matrix].removesuffix("weight") + "bias"
    return None


def sort_out(
    names: Layout, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, strip: Callable[[str], str]
) -> tuple[Found, Problems]:
    """Each tensor by its name in the table; copies replace missing originals, known leftovers are left out."""
    found: Found = {}
    problems: Problems = {}
    copies = {copy for copy, _ in names.copies}
    for spelling, tensor in tensors.items():
        name = names.plain(strip(spelling))
        if name not in expected and name not in copies and names.is_unused(name):
            continue
        if name in found:
            also = f"{spelling}: found {found[name][0]} too, expected one of them"
            problems.setdefault("twice", []).append(also)
        found[name] = spelling, tensor
    untie(names, found, expected, problems)
    return found, problems


def untie(names: Layout, found: Found, expected: Mapping[str, Tensor], problems: Problems) -> None:
    """Remove the copies of tied tensors, which must equal their originals or replace them."""
    for copy, original in names.copies:
        if copy not in found or original not in expected:
            continue
        spelling, tensor = found.pop(copy)
        if original not in found:
            found[original] = spelling, tensor
        elif not equal(tensor, found[original][1]):
            differs = f"{spelling}: found other values than in {found[original][0]}, expected the same"
            problems.setdefault("untied", []).append(differs)


def compare(names: Layout, found: Found, expected: Mapping[str, Tensor], problems: Problems) -> None:
    """Add tensors that are missing, left over, of another shape, or not floating point to the problems."""
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            kind, text = MISSING, f"{names.full(name)}: expected {shape(expected[name])}"
        elif name not in expected:
            kind, text = LEFT_OVER, f"{found[name][0]}: found {shape(found[name][1])}, expected no such tensor"
        elif found[name][1].shape != expected[name].shape:
            spelling, tensor = found[name]
            kind, text = MISSHAPEN, f"{spelling}: found {shape(tensor)}, expected {shape(expected[name])}"
            if name in CLASSES and tensor.shape[1:] == expected[name].shape[1:]:
                text += f": {len(expected[name])} classes by id2label or num_labels of config.json"
        elif not found[name][1].is_floating_point():
            spelling, tensor = found[name]
            kind, text = "not a weight", f"{spelling}: found {tensor.dtype}, expected floating point"
        else:
            continue
        problems.setdefault(kind, []).append(text)


def describe(model: str, file: str, problems: Problems) -> str:
    """The error text: the fault, and its remedy."""
    lines = [f"{file}: {sum(map(len, problems.values()))} tensors are not those of {model}:"]
    for kind in KINDS:
        texts = problems.get(kind, [])
        lines += [f"  {kind} {text}" for text in texts[:NAMED]]
        if len(texts) > NAMED:
            lines.append(f"  and {len(texts) - NAMED} more {kind}")
    if MISSING in problems:
        lines.append("  expected the whole model that config.json describes, by the names of transformers or timm")
    elif MISSHAPEN in problems:
        lines.append(
            "  expected the shapes that config.json gives by its sizes and labels: correct those that do not fit"
        )
    elif problems.keys() == {LEFT_OVER}:
        lines.append("  if the model does without them, --ignore-unused leaves them out")
    return "\n".join(lines)


def equal(one: Tensor, other: Tensor) -> bool:
    return torch.equal(one.float(), other.float())


def shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"
