"""Inputs for encoders: texts of a given number of tokens with one mask, and photographs as JPEG files."""

import io
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

MASK = "[MASK]"
PHOTOGRAPH = (500, 375)  # pixels: the average of ImageNet


@dataclass(frozen=True)
class MaskedText:
    """A text, its tokens, and the position of its mask."""

    text: str
    token_ids: list[int]
    position: int


def masked_texts(checkpoint: Path, lengths: Sequence[int], seed: int = 0) -> list[MaskedText]:
    """Texts of the given numbers of tokens, including special tokens, made of random words of one token each."""
    tokenizer = Tokenizer.from_file(str(checkpoint / "tokenizer.json"))
    words = [word for word in sorted(tokenizer.get_vocab()) if word.isalpha() and len(tokenizer.encode(word)) == 3]
    choose, texts = random.Random(seed), []
    for length in lengths:
        inside = [*choose.choices(words, k=length - 3), MASK]
        choose.shuffle(inside)
        encoded = tokenizer.encode(" ".join(inside))
        assert len(encoded) == length, "a word is not one token beside others; this is a bug"
        texts.append(MaskedText(" ".join(inside), encoded.ids, 1 + inside.index(MASK)))
    return texts


def ready_texts(texts: Sequence[MaskedText], file: Path) -> Path:
    """The tensors of texts, padded on the right, for engines without a tokenizer."""
    lengths = np.array([len(text.token_ids) for text in texts])
    mask = np.arange(max(lengths)) < lengths[:, None]
    ids = np.zeros(mask.shape, np.int64)
    ids[mask] = np.concatenate([text.token_ids for text in texts])
    positions = np.array([text.position for text in texts])
    np.savez(
        file,
        input_ids=ids,
        attention_mask=mask.astype(np.int64),
        token_type_ids=np.zeros_like(ids),
        positions=positions,
    )
    return file


def photographs(folder: Path, count: int, seed: int = 0, *, size: tuple[int, int] = PHOTOGRAPH) -> list[Path]:
    """JPEG files with about the detail of photographs: gradients and some noise, a third of a byte for each pixel."""
    noise, files = np.random.default_rng(seed), []
    for number in range(count):
        coarse = Image.fromarray(noise.integers(0, 256, (12, 16, 3), np.uint8))
        smooth = np.asarray(coarse.resize(size, Image.Resampling.BICUBIC), np.float32)
        picture = np.clip(smooth + noise.normal(0, 8, smooth.shape), 0, 255).astype(np.uint8)
        files.append(folder / f"{size[0]}-{number}.jpg")
        Image.fromarray(picture).save(files[-1], quality=90)
    return files


def ready_images(checkpoint: Path, photographs: Sequence[Path], file: Path) -> Path:
    """The pixels of photographs, as `transformers` prepares them for the checkpoint."""
    from transformers import ViTImageProcessorPil  # slow to import

    processor = ViTImageProcessorPil(**json.loads((checkpoint / "preprocessor_config.json").read_text()))
    opened = [Image.open(io.BytesIO(photograph.read_bytes())).convert("RGB") for photograph in photographs]
    np.savez(file, pixel_values=processor(opened, return_tensors="np")["pixel_values"])
    return file
