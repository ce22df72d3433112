"""A reference implementation of nanoGPT, with its names and shapes, and the files that its scripts save.

Source: github.com/karpathy/nanoGPT, `model.py` and `train.py`. Written anew from what these compute.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

CHARACTERS = "\n !',.:;?" + "ABCDEFGHIJKLMNOPQRSTUVWXYZ" + "abcdefghijklmnopqrstuvwxyz"
SIZES = {"n_layer": 2, "n_head": 4, "n_embd": 64, "block_size": 32, "bias": False, "dropout": 0.1}


class Norm(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.zeros(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return functional.layer_norm(x, self.weight.shape, self.weight, self.bias, 1e-5)


class Attention(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.heads = heads
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width, bias), nn.Linear(width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (part.unflatten(2, (self.heads, -1)) for part in self.c_attn(x).chunk(3, dim=2))
        query, key, value = (part.transpose(1, 2) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self.c_proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, width: int, bias: bool) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(width, 4 * width, bias), nn.Linear(4 * width, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(functional.gelu(self.c_fc(x)))


class NanoBlock(nn.Module):
    def __init__(self, width: int, heads: int, bias: bool) -> None:
        super().__init__()
        self.ln_1, self.attn = Norm(width, bias), Attention(width, heads, bias)
        self.ln_2, self.mlp = Norm(width, bias), Mlp(width, bias)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class NanoGpt(nn.Module):
    """Token ids (n, t) → logits (n, t, vocabulary)."""

    def __init__(
        self, *, n_layer: int, n_head: int, n_embd: int, block_size: int, vocab_size: int, bias: bool, dropout: float
    ) -> None:
        super().__init__()
        blocks = nn.ModuleList(NanoBlock(n_embd, n_head, bias) for _ in range(n_layer))
        tokens, positions = nn.Embedding(vocab_size, n_embd), nn.Embedding(block_size, n_embd)
        self.transformer = nn.ModuleDict({"wte": tokens, "wpe": positions, "h": blocks, "ln_f": Norm(n_embd, bias)})
        self.lm_head = nn.Linear(n_embd, vocab_size, bias=False)
        self.transformer.wte.weight = self.lm_head.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.transformer.wte(ids) + self.transformer.wpe(torch.arange(ids.shape[1]))
        for block in self.transformer.h:
            x = block(x)
        return self.lm_head(self.transformer.ln_f(x))


def random_model(**changes: object) -> NanoGpt:
    """A model with random weights, biases and norms."""
    from tests.checkpoints import randomise

    return randomise(NanoGpt(**{**SIZES, "vocab_size": len(CHARACTERS), **changes}))


def save(path: Path, model: NanoGpt, arguments: dict, prefix: str = "") -> None:
    """Save a model as train.py does: with its sizes, and the state that is needed to continue training."""
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.zeros(1, 2, dtype=torch.long)).sum().backward()
    optimizer.step()
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save(
        {
            "model": state,
            "optimizer": optimizer.state_dict(),
            "model_args": arguments,
            "iter_num": 2000,
            "best_val_loss": torch.tensor(1.47),
            "config": {"dataset": "shakespeare_char", "learning_rate": 1e-3, "compile": True, "device": "cpu"},
        },
        path,
    )


def save_meta(path: Path, characters: str = CHARACTERS) -> None:
    """Save the characters as prepare.py of shakespeare_char does."""
    meta = {
        "vocab_size": len(characters),
        "itos": dict(enumerate(characters)),
        "stoi": {character: n for n, character in enumerate(characters)},
    }
    path.write_bytes(pickle.dumps(meta))
