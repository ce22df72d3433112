"""Names of options of other models and servers, which a request may have by mistake, as a table."""

from collections.abc import Iterable
from difflib import get_close_matches

Values = tuple[bool | int | float | str, ...]

SIMILAR = 0.75  # of difflib's ratio: high enough that `store` does not count as `stop`, nor `tags` as `targets`
LONGEST_NAME = 64  # characters that are compared
SHORTEST_BEGINNING = 4  # letters

OF_OUR_TASKS = (
    "targets truncate function_to_apply normalize dimensions prompt_name max_tokens min_tokens temperature top_k top_p "
    "min_p repetition_penalty frequency_penalty presence_penalty logit_bias stop stop_token_ids "
    "include_stop_str_in_output ignore_eos"
)
# vLLM and OpenAI; transformers and TGI; sentence-transformers.
REFUSED = (
    "allowed_token_ids prompt_logprobs logprob_token_ids prompt_embeds truncate_prompt_tokens thinking_token_budget "
    "repetition_detection logits_processors response_format structured_outputs guided_json guided_regex guided_choice "
    "guided_grammar guided_decoding_backend guided_whitespace_pattern json_schema regex grammar "
    "stop_sequences stop_strings stop_words eos_token_id end_id bad_words_ids suppress_tokens begin_suppress_tokens "
    "forced_bos_token_id forced_eos_token_id sequence_bias max_new_tokens max_length max_time random_seed "
    "candidate_labels hypothesis_template aggregation_strategy pooling instruction lora_name adapter_id"
)
# Name → the values with which the answer is the same as without the parameter.
WITHOUT_EFFECT: dict[str, Values] = {
    # vLLM and OpenAI
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "use_beam_search": (False,),
    "beam_width": (1,),
    "length_penalty": (1.0,),
    "early_stopping": (False,),
    "echo": (False,),
    "suffix": ("",),
    "bad_words": ("", "[]"),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True, False),  # special tokens are always skipped
    "detokenize": (True,),
    "add_special_tokens": (True,),
    "encoding_format": ("float",),
    # transformers and TGI
    "do_sample": (True,),
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "num_return_sequences": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "typical_p": (1.0,),
    "epsilon_cutoff": (0.0,),
    "eta_cutoff": (0.0,),
    "penalty_alpha": (0.0,),
    "diversity_penalty": (0.0,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "encoder_repetition_penalty": (1.0,),
    "guidance_scale": (1.0,),
    "watermark": (False,),
    "return_full_text": (False,),
    "exclude_input_in_output": (True,),
    "return_log_probs": (False,),
    "decoder_input_details": (False,),
    "top_n_tokens": (0,),
    "truncation": (False,),
    "multi_label": (False,),
    "return_all_scores": (False,),
}
OF_OTHERS: dict[str, Values] = {**dict.fromkeys((OF_OUR_TASKS + " " + REFUSED).split(), ()), **WITHOUT_EFFECT}
_BY_LETTERS = {name.replace("_", ""): values for name, values in OF_OTHERS.items()}
# What clients say about themselves, about the encoding of tensors, or about the delivery of responses.
INFORMATIVE = frozenset(
    (
        *("binary_data", "binary_data_output", "binary_data_size", "content_type"),
        *("headers", "request_id", "user", "stream"),
        *("sequence_id", "sequence_start", "sequence_end", "triton_enable_empty_final_response"),
    )
)


def values_without_effect(name: str) -> Values | None:
    """Those of an option of other models or servers, which may be written as `numBeams`; None for other names."""
    return _BY_LETTERS.get(_letters(name))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that this one probably stands for: it is similar, begins with it, or abbreviates it.

    >>> names = ("maxTokens", "k", "rep_penalty", "top_k_tokens", "trace_id")
    >>> [nearest(name, ["max_tokens", "top_k", "repetition_penalty"]) for name in names]
    ['max_tokens', 'top_k', 'repetition_penalty', 'top_k', None]
    """
    name = name[:LONGEST_NAME].lower()
    plain = {_letters(each): each for each in known}
    if close := get_close_matches(_letters(name), plain, n=1, cutoff=SIMILAR):
        return plain[close[0]]
    return next((each for each in plain.values() if name.startswith(f"{each}_") or _abbreviates(name, each)), None)


def _letters(name: str) -> str:
    return "".join(filter(str.isalnum, name[:LONGEST_NAME].lower()))


def _abbreviates(name: str, known: str) -> bool:
    """Whether the name is a word of the known one, or each of its words is the beginning of one."""
    words, known_words = name.split("_"), known.split("_")
    if len(name) < SHORTEST_BEGINNING:
        return name in known_words
    return all(word and any(each.startswith(word) for each in known_words) for word in words)
