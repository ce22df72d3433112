"""Tensors that a file may have and a model does not use, as a table of patterns.

There are three kinds: leftovers of training, buffers that older versions of transformers saved, and heads of other
tasks. Other unused tensors are refused, unless the caller allows to ignore them.
"""

from collections.abc import Iterable
from fnmatch import fnmatchcase

OF_TRAINING = (
    "loss.*",
    "loss_fct.*",
    "loss_fn.*",
    "loss_func.*",
    "loss_function.*",
    "criterion.*",
    "class_weights",
    "class_weight",
    "pos_weight",
    "dropout.*",
    "*.dropout.*",
)
BUFFERS = (
    "position_ids",
    "*.position_ids",
    "token_type_ids",
    "*.token_type_ids",
    "h.*.attn.bias",  # GPT-2's causal mask
    "h.*.attn.masked_bias",
    "h.*.crossattention.bias",
    "h.*.crossattention.masked_bias",
)
POOLER = ("pooler.*",)
TEXT_HEADS = ("classifier.*", "qa_outputs.*", *POOLER)
IMAGE_HEADS = ("classifier.*", "decoder.*", "embeddings.mask_token", *POOLER)  # the decoder reconstructs masked patches
# By family, without the prefix of the names in files.
HEADS: dict[str, tuple[str, ...]] = {
    "bert": (*TEXT_HEADS, "cls.predictions.*", "cls.seq_relationship.*"),
    "roberta": (*TEXT_HEADS, "lm_head.*"),
    "distilbert": (*TEXT_HEADS, "pre_classifier.*", "vocab_transform.*", "vocab_layer_norm.*", "vocab_projector.*"),
    "gpt": ("score.*", "classifier.*", "qa_outputs.*", "multiple_choice_head.*"),
    "vit": IMAGE_HEADS,
    "deit": (*IMAGE_HEADS, "cls_classifier.*", "distillation_classifier.*"),
}
# Unused tensors of a head that is used. (An untied BERT has a bias of its own beside this one.)
WITHIN = {
    "bert": ("cls.predictions.bias", "cls.predictions.decoder.bias"),
    "roberta": ("lm_head.bias", "lm_head.decoder.bias"),
}


def leftovers(family: str, expected: Iterable[str]) -> tuple[str, ...]:
    """The patterns for a model of `family` that needs the tensors `expected`, both without prefix.

    The model's own head is not a leftover: an extra tensor in it may mean that it is another head.
    """
    names = list(expected)
    other_heads = (head for head in HEADS.get(family, ()) if not any(fnmatchcase(name, head) for name in names))
    return (*OF_TRAINING, *BUFFERS, *WITHIN.get(family, ()), *other_heads)
