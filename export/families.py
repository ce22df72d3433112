"""The families of models that can be exported, and the files each of them needs: `--list` on the command line.

The texts are constants, so that `--list` needs no torch; tests compare them with what models/checkpoints reads.
"""

from collections.abc import Sequence
from typing import Any

from export import precisions
from export.sources import lookup

FAMILIES = {
    "bert": "BertForMaskedLM, BertForPreTraining (fill-mask), BertForSequenceClassification (classify-text), BertModel "
    "and sentence-transformers (embed)",
    "roberta": "RobertaForMaskedLM (fill-mask), RobertaForSequenceClassification (classify-text), RobertaModel and "
    "sentence-transformers (embed)",
    "distilbert": "DistilBertForMaskedLM (fill-mask), DistilBertForSequenceClassification (classify-text), "
    "DistilBertModel and sentence-transformers (embed)",
    "gpt": "GPT2LMHeadModel, which includes DistilGPT-2 (generate)",
    "nanogpt": "nanoGPT (generate): ckpt.pt, with meta.pkl or --tokenizer",
    "vit": "ViTForImageClassification (classify-image), with preprocessor_config.json or processor_config.json: the "
    "image processor of ViT, DeiT, BEiT, CLIP, BiT, ConvNext, LeViT, PoolFormer or another one with the same steps; "
    "--image-size interpolates the positions",
    "deit": "DeiTForImageClassification, DeiTForImageClassificationWithTeacher (classify-image), with the files of vit",
    "mixer": "timm's mixer_* (classify-image); config.json describes the preprocessing, too",
}
FILES = "config.json, and weights in model.safetensors or pytorch_model.bin, whole or in shards with their index"
CHECKPOINTS = (
    "config.json without architectures: --task names the task",
    "names of tensors: the prefixes module., _orig_mod. and model. are removed",
    "tensors that the model does not use: leftovers of training and of other heads are ignored, others only with "
    "--ignore-unused",
    "activations: all in transformers' ACT2FN except prelu and xielu",
    "attention heads whose width is not a multiple of 8: exported for the CPU only",
    "refused: decoders (is_decoder), cross-attention, relative positions, quantised weights, code in the source",
)
TOKENIZERS = (
    "every tokenizer that AutoTokenizer of transformers loads in its fast form (tokenizer.json; vocab.txt; vocab.json "
    "and merges.txt; sentencepiece models that it converts), with the settings in the files beside it",
    "refused: tokenizers that transformers has in Python only, and code in the source",
)
SENTENCE_TRANSFORMERS = (
    "modules.json with Transformer, Pooling (cls, max, mean, mean_sqrt_len_tokens, weightedmean, lasttoken, joined "
    "where several), Dense, LayerNorm, Normalize, Dropout",
    "max_seq_length, do_lower_case, prompts, truncate_dim",
    "cross-encoders with Identity, Sigmoid or Softmax",
    "refused: other modules",
)


def account() -> dict[str, Any]:
    """Everything that `--list` says, for `--json`."""
    return {
        "bundled": lookup.bundled(),
        "families": FAMILIES,
        "files": FILES,
        "checkpoints": CHECKPOINTS,
        "tokenizers": "; ".join(TOKENIZERS),
        "sentence_transformers": SENTENCE_TRANSFORMERS,
        "targets": precisions.TARGETS,
    }


def describe() -> list[str]:
    """The lines that `--list` prints."""
    return [
        f"bundled models: {', '.join(lookup.bundled()) or 'none'}",
        *section("families", [f"{family}: {needs}" for family, needs in FAMILIES.items()]),
        *section("files of every family but nanogpt", [FILES]),
        *section("checkpoints", CHECKPOINTS),
        *section("tokenizers of text models", TOKENIZERS),
        *section("sentence-transformers", SENTENCE_TRANSFORMERS),
        *section("targets", [f"--target {name}: {', '.join(allowed)}" for name, allowed in precisions.TARGETS.items()]),
    ]


def section(title: str, lines: Sequence[str]) -> list[str]:
    """A title and its lines, indented."""
    return [f"{title}:", *(f"  {line}" for line in lines)]
