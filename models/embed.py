"""The input of the stack: tokens or patches become vectors (b, t, d), to which a vector for each position is added."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class TokenEmbedding(nn.Module):
    """A vector for each token, plus one for its position, plus (BERT) one for its segment."""

    def __init__(
        self, *, vocabulary: int, positions: int, width: int, segments: int = 0, norm_epsilon: float | None = None
    ) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(positions, width)
        self.segments = nn.Embedding(segments, width) if segments else None
        self.norm = nn.Identity() if norm_epsilon is None else nn.LayerNorm(width, norm_epsilon)

    def forward(self, input_ids: Tensor, position_ids: Tensor, token_type_ids: Tensor | None = None) -> Tensor:
        x = self.tokens(input_ids) + self.positions(position_ids)  # (b, t, d)
        if self.segments is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros_like(input_ids)
            x = x + self.segments(token_type_ids)
        return self.norm(x)


class PatchEmbedding(nn.Module):
    """Cut an image into patches of p × p pixels, and multiply each by one matrix.

    (Published code writes this matrix product as a convolution whose stride is its kernel size.)
    """

    def __init__(self, *, image_size: int, patch_size: int, channels: int, width: int) -> None:
        super().__init__()
        if image_size % patch_size:
            raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}")
        self.channels, self.patch_size, self.per_side = channels, patch_size, image_size // patch_size
        self.patches = nn.Linear(channels * patch_size**2, width)

    @property
    def count(self) -> int:
        """How many patches an image has."""
        return self.per_side**2

    def forward(self, pixel_values: Tensor) -> Tensor:  # (b, channels, i·p, i·p)
        i, p = self.per_side, self.patch_size
        expected = (self.channels, i * p, i * p)
        if pixel_values.shape[1:] != expected:  # reshape would split a larger image into several small ones
            raise ValueError(f"pixel_values is {tuple(pixel_values.shape)}: expected a batch of {expected}")
        x = pixel_values.reshape(-1, self.channels, i, p, i, p)
        x = x.permute(0, 2, 4, 1, 3, 5)  # (b, i, i, channels, p, p)
        return self.patches(x.reshape(-1, i * i, self.channels * p * p))  # (b, t, d)


class ClassTokensAndPositions(nn.Module):
    """Put a learned class token before the patches (DeiT: two), and add a vector for each position."""

    def __init__(self, *, tokens: int, patches: int, width: int) -> None:
        super().__init__()
        self.tokens = nn.ParameterList(torch.zeros(1, 1, width) for _ in range(tokens))
        self.positions = nn.Parameter(torch.zeros(1, tokens + patches, width))

    def forward(self, x: Tensor) -> Tensor:  # (b, t, d)
        patches, tokens = x.shape[1], len(self.tokens)
        x = functional.pad(x, (0, 0, tokens, 0))  # (b, tokens + t, d): zeros before the patches ...
        class_tokens = functional.pad(torch.cat(list(self.tokens), dim=1), (0, 0, 0, patches))
        return x + (self.positions + class_tokens)  # ... to which the class tokens are added
