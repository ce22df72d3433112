"""scikit-learn's 1,797 handwritten digits as images of 32 × 32 pixels: the split, and random variations for training.

The split is fixed. Knows nothing of models.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import pi

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn import functional

IMAGE_SIZE = 32
NAMES = tuple(str(digit) for digit in range(10))
HELD_OUT_SHARE, SPLIT_SEED = 0.25, 0
MEAN, DEVIATION = 0.5, 0.5
EXAMPLE = 2  # the held-out digit of `example.png`


@dataclass(frozen=True)
class Digits:
    """Grey images (b, 8, 8), from 0 for paper to 1 for ink, and their labels (b)."""

    images: Tensor
    labels: Tensor


def read() -> tuple[Digits, Digits]:
    """The training and the held-out images: a quarter of each digit, chosen by a fixed seed, is held out."""
    found = load_digits()
    images = torch.tensor(found.images / 16, dtype=torch.float32)  # grey levels 0 to 16
    labels = torch.tensor(found.target)
    training, held_out = train_test_split(
        range(len(labels)), test_size=HELD_OUT_SHARE, random_state=SPLIT_SEED, stratify=labels.numpy()
    )
    return Digits(images[training], labels[training]), Digits(images[held_out], labels[held_out])


def as_picture(image: Tensor, *, side: int = 8, dark_on_light: bool = False) -> Image.Image:
    """One digit as a picture of `side` pixels, white on black or black on white."""
    ink = 1 - image if dark_on_light else image
    grey = (ink * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(grey).resize((side, side), Image.Resampling.BICUBIC).convert("RGB")


def example() -> tuple[Image.Image, str]:
    """A held-out digit, enlarged, and its label."""
    _, held_out = read()
    return as_picture(held_out.images[EXAMPLE], side=128), NAMES[int(held_out.labels[EXAMPLE])]


def as_pixels(pictures: Sequence[Image.Image]) -> Tensor:
    """Preprocess pictures as `preprocessor_config.json` describes: resize, then scale to -1 … 1."""
    resized = [picture.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR) for picture in pictures]
    pixels = torch.tensor(np.stack([np.asarray(picture) for picture in resized]))  # (b, 32, 32, 3)
    return (pixels.permute(0, 3, 1, 2) / 255 - MEAN) / DEVIATION  # (b, 3, 32, 32)


def varied(images: Tensor) -> Tensor:
    """Random variations of the digits for training, from (b, 8, 8) to (b, 3, 32, 32)."""
    b = len(images)
    large = functional.interpolate(images[:, None], size=(IMAGE_SIZE, IMAGE_SIZE), mode="bicubic")  # (b, 1, 32, 32)
    grid = functional.affine_grid(motions(b), [b, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    ink = functional.grid_sample(large, grid, align_corners=False)
    ink = (ink - 0.5) * between(1, 3, b) + between(0.4, 0.6, b)  # softer or sharper edges
    ink = torch.where(chance(0.3, b), functional.avg_pool2d(ink, 3, stride=1, padding=1), ink)
    ink = ink.clamp(0, 1) * between(0.6, 1, b) + torch.randn_like(ink) * between(0, 0.1, b)
    ink = torch.where(chance(0.5, b), 1 - ink, ink)  # half of them black on white
    return ((ink.clamp(0, 1) - MEAN) / DEVIATION).expand(-1, 3, -1, -1)


def motions(b: int) -> Tensor:
    """Small random rotations, shears, shifts and scalings, as affine maps (b, 2, 3)."""
    angle, shear = (between(-0.05, 0.05, b) * pi).flatten(), between(-0.12, 0.12, b).flatten()
    size_x, size_y = between(0.9, 1.2, b).flatten(), between(0.95, 1.15, b).flatten()
    shift_x, shift_y = between(-0.15, 0.15, b).flatten(), between(-0.12, 0.12, b).flatten()
    cos, sin = torch.cos(angle), torch.sin(angle)
    rows = [size_x * cos, size_x * (shear - sin), shift_x, size_y * sin, size_y * cos, shift_y]
    return torch.stack(rows, dim=1).view(b, 2, 3)


def between(low: float, high: float, b: int) -> Tensor:
    """A random number for each image."""
    return low + (high - low) * torch.rand(b, 1, 1, 1)


def chance(share: float, b: int) -> Tensor:
    """True for about this share of the images."""
    return torch.rand(b, 1, 1, 1) < share
