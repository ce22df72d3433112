"""What a table of published tensors is made of: rows, each with the way in which a tensor must be turned.

Read in both directions. Knows names and shapes. Knows no files, no configurations in JSON, and changes no model.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import Tensor
from torch.nn import functional

from models.config import StackConfig

POSITION_OFFSET = 2  # where RoBERTa begins to count
PAD_POSITION = 1  # where its padding tokens stand
# Parts of names that come from what a model was wrapped in when it was saved: by DataParallel and its successors, by
# torch.compile, by FSDP and its checkpoints of activations, by a class of the user's own. No published name has them.
WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "model"}


def unwrapped(name: str) -> str:
    """A tensor's name without the parts that come from wrapping: `module._orig_mod.bert.x` is `bert.x`."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


@dataclass(frozen=True)
class Transform:
    """How one published tensor becomes one or several of ours, and back. Both work on the meta device too."""

    to_ours: Callable[[Tensor, StackConfig], tuple[Tensor, ...]]
    to_published: Callable[[tuple[Tensor, ...], StackConfig], Tensor]


identity = Transform(
    to_ours=lambda published, config: (published,),
    to_published=lambda ours, config: ours[0],
)
transposed = Transform(  # GPT-2's "Conv1D" is a linear layer whose matrix is stored the other way round
    to_ours=lambda published, config: (published.T,),
    to_published=lambda ours, config: ours[0].T,
)
fused_weight = Transform(  # ... and its queries, keys and values are one such layer
    to_ours=lambda published, config: published.T.chunk(3),
    to_published=lambda ours, config: torch.cat(ours).T,
)
fused = Transform(  # ... their biases; and in nanoGPT, which stores matrices the right way round, the weights too
    to_ours=lambda published, config: published.chunk(3),
    to_published=lambda ours, config: torch.cat(ours),
)
after_padding = Transform(  # RoBERTa's first word stands at position 2. Here, in graphs and in the server it is 0.
    # Row 1 is the position of padding tokens, wherever they stand: it becomes the last. Row 0 is never used.
    to_ours=lambda published, config: (published[PAD_POSITION:].roll(-1, dims=0),),
    to_published=lambda ours, config: functional.pad(ours[0].roll(1, dims=0), (0, 0, PAD_POSITION, 0)),
)
patches = Transform(  # a convolution whose stride is its kernel is a matrix over flattened patches
    to_ours=lambda published, config: (published.flatten(1),),
    to_published=lambda ours, config: ours[0].unflatten(1, (config.channels, config.patch_size, config.patch_size)),
)


@dataclass(frozen=True)
class Row:
    """One published tensor and ours that it holds. `{n}` stands for the number of the block."""

    ours: tuple[str, ...]
    published: str
    transform: Transform = identity

    def numbered(self, depth: int) -> list["Row"]:
        """This row for each block, or itself where it names none."""
        if "{n}" not in self.published:
            return [self]
        return [
            Row(tuple(name.format(n=n) for name in self.ours), self.published.format(n=n), self.transform)
            for n in range(depth)
        ]


def layer(ours: str, published: str, weight: Transform = identity) -> tuple[Row, Row]:
    """The weight and the bias of a linear layer or of a norm."""
    return (
        Row((f"{ours}.weight",), f"{published}.weight", weight),
        Row((f"{ours}.bias",), f"{published}.bias"),
    )


@dataclass(frozen=True)
class Layout:
    """The published names of one family. In the table they stand without `prefix`: files come with it and without."""

    rows: tuple[Row, ...]
    prefix: str = ""
    unprefixed: tuple[str, ...] = ()  # how the names begin that never have the prefix: those of the heads
    renamed: tuple[tuple[str, str], ...] = ()  # old spellings: the end of a name, and what it is called today
    copies: tuple[tuple[str, str], ...] = ()  # tied tensors that some files store twice: the copy, the original
    unused: tuple[str, ...] = ()  # patterns of what may lie in a file and plays no part in the answer
    bare: bool = False  # whether we publish without the prefix: it says which part of a model with a head this is

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
