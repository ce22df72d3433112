"""ViT and DeiT give the outputs of transformers, and MLP-Mixer those of a reference in the layout of timm.

Checkpoints are saved and loaded as files, as users do, and all parameters are random.
"""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    DeiTForImageClassificationWithTeacher,
    PreTrainedModel,
    ViTConfig,
    ViTForImageClassification,
)

from models.checkpoints import load, save
from tests.models.parity import AssertParity, Randomised, Saved, small_vit, without_initial_values

pytestmark = pytest.mark.usefixtures("without_gradients")


@pytest.mark.parametrize("kind", [DeiTForImageClassification, DeiTForImageClassificationWithTeacher])
def test_deit(kind: type[PreTrainedModel], saved: Saved, assert_parity: AssertParity) -> None:
    reference, images = kind(DeiTConfig(**small_vit().to_dict())), torch.randn(3, 3, 32, 32)
    assert_parity(load(saved(reference))(images), reference(images).logits)


@pytest.mark.parametrize("size", [16, 40, 64])
@pytest.mark.parametrize(
    "kind", [ViTForImageClassification, DeiTForImageClassification, DeiTForImageClassificationWithTeacher]
)
def test_positions_are_interpolated_for_images_of_another_size(
    kind: type[PreTrainedModel], size: int, saved: Saved, assert_parity: AssertParity
) -> None:
    config = small_vit() if kind is ViTForImageClassification else DeiTConfig(**small_vit().to_dict())
    reference, images = kind(config), torch.randn(3, 3, size, size)
    model = load(saved(reference), image_size=size)
    assert model.config.image_size == size
    assert_parity(model(images), reference(images, interpolate_pos_encoding=True).logits)


@pytest.mark.parametrize("changes", [{}, {"num_channels": 1}, {"patch_size": 16}, {"hidden_act": "relu"}])
def test_vit(changes: dict[str, object], saved: Saved, assert_parity: AssertParity) -> None:
    reference = ViTForImageClassification(small_vit(**changes))
    images = torch.randn(3, reference.config.num_channels, 32, 32)
    assert_parity(load(saved(reference))(images), reference(images).logits)


def test_vit_base_patch16_224(saved: Saved, assert_parity: AssertParity) -> None:
    reference = without_initial_values(ViTForImageClassification, ViTConfig(num_labels=1000))
    images = torch.randn(1, 3, 224, 224)
    assert_parity(load(saved(reference))(images), reference(images).logits)


class TwoLayers(nn.Module):
    """timm's Mlp."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(functional.gelu(self.fc1(x)))


class MixerBlock(nn.Module):
    def __init__(self, width: int, patches: int, tokens: int, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.mlp_tokens, self.mlp_channels = TwoLayers(patches, tokens), TwoLayers(width, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).mT).mT
        return x + self.mlp_channels(self.norm2(x))


class Stem(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).mT


class ReferenceMixer(nn.Module):
    """MLP-Mixer as in equation 1 of the paper, with a convolution for the patches and the names of timm."""

    def __init__(
        self, *, width: int, depth: int, tokens: int, mlp: int, image: int, patch: int, channels: int, classes: int
    ) -> None:
        super().__init__()
        self.stem = Stem(channels, width, patch)
        patches = (image // patch) ** 2
        self.blocks = nn.Sequential(*(MixerBlock(width, patches, tokens, mlp) for _ in range(depth)))
        self.norm = nn.LayerNorm(width, 1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).mean(dim=1))


def test_a_small_mixer(randomised: Randomised, assert_parity: AssertParity, tmp_path: Path) -> None:
    reference = randomised(
        ReferenceMixer(width=48, depth=3, tokens=36, mlp=96, image=32, patch=8, channels=1, classes=7)
    )
    arguments = {"img_size": [32, 32], "patch_size": 8, "in_chans": 1, "embed_dim": 48, "num_blocks": 3}
    config = {
        "architecture": "mixer_s16_224",
        "num_classes": 7,
        "global_pool": "avg",
        "model_args": {**arguments, "mlp_ratio": [0.75, 2.0], "drop_rate": 0.1},
        "pretrained_cfg": {"input_size": [3, 224, 224], "num_classes": 1000, "crop_pct": 0.875, "mean": [0.5] * 3},
    }
    save(tmp_path, config, reference.state_dict())
    images = torch.randn(3, 1, 32, 32)
    assert_parity(load(tmp_path)(images), reference(images))


def test_mixer_b16_224_of_the_published_size(
    randomised: Randomised, assert_parity: AssertParity, tmp_path: Path
) -> None:
    with torch.device("meta"):
        reference = ReferenceMixer(
            width=768, depth=12, tokens=384, mlp=3072, image=224, patch=16, channels=3, classes=1000
        )
    randomised(reference.to_empty(device="cpu"))
    shown = {"input_size": [3, 224, 224], "fixed_input_size": True, "interpolation": "bicubic", "crop_pct": 0.875}
    config = {"architecture": "mixer_b16_224", "num_classes": 1000, "num_features": 768, "pretrained_cfg": shown}
    save(tmp_path, config, reference.state_dict())
    images = torch.randn(1, 3, 224, 224)
    assert_parity(load(tmp_path)(images), reference(images))
