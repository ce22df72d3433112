"""The attention-only transformer: GPT without its MLPs, small enough to take apart by hand.

Such a model computes a sum over paths through its heads, and each head is two matrices: `SelfAttention.qk` says which
tokens it attends to, and `SelfAttention.ov` what it adds to a token.

Source: Elhage et al., "A Mathematical Framework for Transformer Circuits", 2021.
"""

from dataclasses import replace

from models.config import GptConfig
from models.gpt import Gpt


class AttentionOnly(Gpt):
    """GPT whose blocks are self-attention and nothing else."""

    def __init__(self, config: GptConfig) -> None:
        super().__init__(replace(config, mlp_width=0))
