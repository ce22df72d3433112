"""Tiny checkpoints in the Hugging Face layout, written by transformers, with random weights."""

import json
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn

TEXTS = [
    "The statement raises an exception, and the caller may catch it.",
    "A list is a mutable sequence, typically used to store collections of similar items.",
    "Attention forms affinities between all pairs of tokens; a mask says which of them count.",
    "Return the number of elements in the set, or zero if there are none.",
]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PROMPTS = {"query": "", "passage": "a set of passages, "}
BERT = {
    "vocab_size": 200,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "max_position_embeddings": 64,
}


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Randomise every weight, bias and norm. The zero biases of a new model would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = "norm" in name.lower() or ".ln_" in name
            parameter.copy_(1 + 0.1 * noise if is_norm and name.endswith("weight") else 0.1 * noise)
    return model.eval()


def word_pieces() -> Tokenizer:
    """A WordPiece tokenizer like BERT's."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    tokenizer.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    return tokenizer


def byte_pairs() -> Tokenizer:
    """A byte-level BPE tokenizer like GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return tokenizer


def write_bert_tokenizer(directory: Path, positions: int = BERT["max_position_embeddings"]) -> None:
    """Write BERT's tokenizer files."""
    word_pieces().save(str(directory / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    config = {**names, "mask_token": "[MASK]", "do_lower_case": True, "model_max_length": positions}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def write_gpt2_tokenizer(directory: Path) -> None:
    """Write GPT-2's tokenizer files."""
    byte_pairs().save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|endoftext|>"}))


def write_bert(directory: Path, seed: int = 0) -> None:
    """A masked language model."""
    randomise(transformers.BertForMaskedLM(transformers.BertConfig(**BERT)), seed).save_pretrained(directory)
    write_bert_tokenizer(directory)


def write_classifier(directory: Path) -> None:
    """A classifier of three named classes."""
    names = dict(enumerate(["bad", "fair", "good"]))
    config = transformers.BertConfig(**BERT, id2label=names, label2id={name: n for n, name in names.items()})
    randomise(transformers.BertForSequenceClassification(config)).save_pretrained(directory)
    write_bert_tokenizer(directory)


def write_embedder(directory: Path) -> None:
    """An encoder in the layout of sentence-transformers."""
    config = transformers.BertConfig(**BERT)
    randomise(transformers.BertModel(config, add_pooling_layer=False)).save_pretrained(directory)
    write_bert_tokenizer(directory)
    write_pooling(directory)
    (directory / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))


def write_pooling(directory: Path, *, max_tokens: int = 32) -> None:
    """The files that sentence-transformers adds to an encoder: mean pooling, normalisation, a limit of tokens."""
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Normalize": "Normalize"}
    modules = [
        {"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for n, (path, kind) in enumerate(kinds.items())
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 64, "pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    (directory / "1_Pooling/config.json").write_text(json.dumps(pooling))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": max_tokens}))


def write_gpt(directory: Path) -> None:
    """A generator of text."""
    config = transformers.GPT2Config(
        vocab_size=400, n_positions=64, n_embd=64, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
    )
    randomise(transformers.GPT2LMHeadModel(config)).save_pretrained(directory)
    write_gpt2_tokenizer(directory)


def write_vit(directory: Path) -> None:
    """A classifier of images of 32 × 32 pixels."""
    names = {n: f"digit {n}" for n in range(10)}
    config = transformers.ViTConfig(
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        image_size=32,
        patch_size=8,
        id2label=names,
        label2id={name: n for n, name in names.items()},
    )
    randomise(transformers.ViTForImageClassification(config)).save_pretrained(directory)
    preprocessing = {
        "do_resize": True,
        "size": {"height": 32, "width": 32},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.4, 0.3],
        "image_std": [0.5, 0.6, 0.7],
    }
    (directory / "preprocessor_config.json").write_text(json.dumps(preprocessing))


def mixer_tensors(
    *, width: int, depth: int, tokens: int, hidden: int, patch: int, positions: int, classes: int
) -> dict:
    """Random tensors of an MLP-Mixer, with timm's names."""
    generator = torch.Generator().manual_seed(0)

    def norm(name: str) -> dict:
        return {
            f"{name}.weight": 1 + 0.1 * torch.randn(width, generator=generator),
            f"{name}.bias": 0.1 * torch.randn(width, generator=generator),
        }

    def linear(name: str, out: int, *into: int) -> dict:
        return {
            f"{name}.weight": 0.1 * torch.randn(out, *into, generator=generator),
            f"{name}.bias": 0.1 * torch.randn(out, generator=generator),
        }

    tensors = linear("stem.proj", width, 3, patch, patch) | norm("norm") | linear("head", classes, width)
    for n in range(depth):
        block = f"blocks.{n}"
        tensors |= norm(f"{block}.norm1") | norm(f"{block}.norm2")
        tensors |= linear(f"{block}.mlp_tokens.fc1", tokens, positions)
        tensors |= linear(f"{block}.mlp_tokens.fc2", positions, tokens)
        tensors |= linear(f"{block}.mlp_channels.fc1", hidden, width)
        tensors |= linear(f"{block}.mlp_channels.fc2", width, hidden)
    return tensors


def write_mixer(directory: Path) -> None:
    """An MLP-Mixer in timm's layout."""
    directory.mkdir(exist_ok=True)
    config = {
        "architecture": "mixer_b16_224",
        "num_classes": 10,
        "label_names": [f"digit {n}" for n in range(10)],
        "model_args": {"img_size": 32, "patch_size": 8, "embed_dim": 64, "num_blocks": 2, "mlp_ratio": [0.5, 2.0]},
        "pretrained_cfg": {
            "input_size": [3, 32, 32],
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "num_classes": 10,
        },
    }
    (directory / "config.json").write_text(json.dumps(config))
    tensors = mixer_tensors(width=64, depth=2, tokens=32, hidden=128, patch=8, positions=16, classes=10)
    save_file(tensors, directory / "model.safetensors")


WRITERS = {
    "bert": write_bert,
    "classifier": write_classifier,
    "embedder": write_embedder,
    "gpt": write_gpt,
    "vit": write_vit,
    "mixer": write_mixer,
}
