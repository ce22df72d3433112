"""What can be exported, and which files each family needs: `--list` of the command line.

A list of words, so that it is there at once: tests hold it to what models/checkpoints knows.
"""

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
    "gpt": "GPT2LMHeadModel, DistilGPT-2 too (generate)",
    "nanogpt": "nanoGPT (generate): ckpt.pt, with meta.pkl or --tokenizer",
    "vit": "ViTForImageClassification (classify-image): preprocessor_config.json or processor_config.json with the "
    "image processor of ViT, DeiT, BEiT, CLIP, BiT, ConvNext, LeViT, PoolFormer or another that takes the same steps; "
    "--image-size interpolates positions",
    "deit": "DeiTForImageClassification, DeiTForImageClassificationWithTeacher (classify-image): the same",
    "mixer": "timm's mixer_* (classify-image): config.json says all",
}
TOKENIZERS = (
    "whatever AutoTokenizer of transformers loads in its fast form (tokenizer.json; vocab.txt; vocab.json and "
    "merges.txt; sentencepiece models that it converts), with the settings beside it; classes in Python alone, and "
    "code in the source, are refused"
)
TASKS = ("fill-mask", "classify-text", "embed", "classify-image", "generate")
WEIGHTS = "config.json, and weights in model.safetensors or pytorch_model.bin, whole or in shards with their index"


def account() -> dict[str, Any]:
    """For machines."""
    return {
        "bundled": lookup.bundled(),
        "families": FAMILIES,
        "tokenizers": TOKENIZERS,
        "files": WEIGHTS,
        "targets": precisions.TARGETS,
    }


def described() -> list[str]:
    """For a reader."""
    lines = [f"bundled: {', '.join(lookup.bundled()) or 'none'}"]
    lines += [f"{family}: {needs}" for family, needs in FAMILIES.items()]
    lines.append(f"tokenizers of text models: {TOKENIZERS}")
    lines.append(f"each but nanogpt: {WEIGHTS}")
    return lines + [f"--target {target}: {', '.join(allowed)}" for target, allowed in precisions.TARGETS.items()]
