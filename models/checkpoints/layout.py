"""The parts of a table of published tensors: rows of names, each with the transform of the tensor.

Tables are read in both directions. They know names and shapes, and nothing of files, JSON or modules.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn import functional

from models.config import StackConfig

POSITION_OFFSET = 2  # RoBERTa's first position
PAD_POSITION = 1  # the position (and the id) of its padding tokens
# Parts of names that come from wrappers of a saved model: DataParallel and its successors, torch.compile, FSDP and its
# activation checkpointing, a class of the user's. No published name has them.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "model"}


def unwrapped(name: str) -> str:
    """A tensor's name without the parts of wrappers: `module._orig_mod.bert.x` is `bert.x`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


@dataclass(frozen=True)
class Transform:
    """From one published tensor to one or several parameters, and back. Both work on the meta device, too."""

    to_ours: Callable[[Tensor, StackConfig], tuple[Tensor, ...]]
    to_published: Callable[[tuple[Tensor, ...], StackConfig], Tensor]


identity = Transform(
    to_ours=lambda published, config: (published,),
    to_published=lambda ours, config: ours[0],
)
transposed = Transform(  # GPT-2's "Conv1D" is a linear layer with a transposed matrix
    to_ours=lambda published, config: (published.T,),
    to_published=lambda ours, config: ours[0].T,
)
fused_weight = Transform(  # ... and its queries, keys and values are one such layer
    to_ours=lambda published, config: published.T.chunk(3),
    to_published=lambda ours, config: torch.cat(ours).T,
)
fused = Transform(  # ... their biases; and in nanoGPT, whose matrices are not transposed, the weights, too
    to_ours=lambda published, config: published.chunk(3),
    to_published=lambda ours, config: torch.cat(ours),
)
after_padding = Transform(  # RoBERTa's first token has position 2; here, in graphs and in the server it has position 0.
    # Row 1 is the position of all padding tokens: it becomes the last row. Row 0 is never used.
    to_ours=lambda published, config: (published[PAD_POSITION:].roll(-1, dims=0),),
    to_published=lambda ours, config: functional.pad(ours[0].roll(1, dims=0), (0, 0, PAD_POSITION, 0)),
)
patches = Transform(  # a convolution whose stride is its kernel is a matrix over flattened patches
    to_ours=lambda published, config: (published.flatten(1),),
    to_published=lambda ours, config: ours[0].unflatten(1, (config.channels, config.patch_size, config.patch_size)),
)


@dataclass(frozen=True)
class Row:
    """One published tensor and the parameters in it. `{n}` is the number of the block."""

    ours: tuple[str, ...]
    published: str
    transform: Transform = identity

    def numbered(self, depth: int) -> list["Row"]:
        """This row for each block, or only itself if it has no `{n}`."""
        if "{n}" not in self.published:
            return [self]
        return [
            Row(tuple(name.format(n=n) for name in self.ours), self.published.format(n=n), self.transform)
            for n in range(depth)
        ]


def layer(ours: str, published: str, weight: Transform = identity) -> tuple[Row, Row]:
    """The weight and the bias of a linear layer or of a layer norm."""
    return (
        Row((f"{ours}.weight",), f"{published}.weight", weight),
        Row((f"{ours}.bias",), f"{published}.bias"),
    )


@dataclass(frozen=True)
class Layout:
    """The published names of one family, without `prefix`: files have names with it and without."""

    rows: tuple[Row, ...]
    prefix: str = ""
    unprefixed: tuple[str, ...] = ()  # how names begin that never have the prefix: those of the heads
    renamed: tuple[tuple[str, str], ...] = ()  # suffixes of names in old files, and their current form
    copies: tuple[tuple[str, str], ...] = ()  # tied tensors that some files have twice: the copy, the original
    unused: tuple[str, ...] = ()  # patterns of tensors that the model does not use
    bare: bool = False  # whether names are written without the prefix, which marks a part of a model with a head

    def plain(self, name: str) -> str:
        """A name found in a file, as the table spells it."""
        for old, new in self.renamed:
            if name.endswith(old):
                name = name.removesuffix(old) + new
        return name.removeprefix(self.prefix)

    def full(self, plain: str) -> str:
        """A name of the table, as it is published."""
        return plain if self.bare or plain.startswith(self.unprefixed) else self.prefix + plain

    def is_unused(self, plain: str) -> bool:
        return any(fnmatchcase(plain, pattern) for pattern in self.unused)
