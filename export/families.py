"""What can be exported, and which files each family needs: `--list` of the command line."""

from typing import Any

from export import precisions, sources

FAMILIES = {
    "bert": "BertForMaskedLM, BertForPreTraining (fill-mask), BertForSequenceClassification (classify-text), BertModel "
    "and sentence-transformers (embed): config.json, model.safetensors, tokenizer.json or vocab.txt",
    "gpt": "GPT2LMHeadModel (generate): config.json, model.safetensors, tokenizer.json or vocab.json and merges.txt",
    "vit": "ViTForImageClassification (classify-image): config.json, model.safetensors, preprocessor_config.json",
    "mixer": "timm's mixer_* (classify-image): config.json, model.safetensors",
}


def account() -> dict[str, Any]:
    """For machines."""
    return {"bundled": sources.bundled(), "families": FAMILIES, "targets": precisions.TARGETS}


def described() -> list[str]:
    """For a reader."""
    lines = [f"bundled: {', '.join(sources.bundled()) or 'none'}"]
    lines += [f"{family}: {needs}" for family, needs in FAMILIES.items()]
    return lines + [f"--target {target}: {', '.join(allowed)}" for target, allowed in precisions.TARGETS.items()]
