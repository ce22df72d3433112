"""The attention-only transformer: GPT without its MLPs, small enough to take apart by hand.

What such a model computes is a sum of paths through its heads, and each head is two matrices, `SelfAttention.qk` (where
to look) and `SelfAttention.ov` (what to take over).

Source: Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.
"""

from dataclasses import replace

from models.config import GptConfig
from models.gpt import Gpt


class AttentionOnly(Gpt):
    """GPT whose blocks are self-attention and nothing else."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__(replace(config, mlp_width=0))
