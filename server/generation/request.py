"""What a request to generate asks, and what it gets token by token. Plain values; no text, slots or tensors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.errors import InvalidRequest
from server.observability.observer import Usage

LIKELIEST_LIMIT = 20  # of `logprobs`, as in vLLM: all of them are among the likeliest that a graph gives (64)
NAMED_LIMIT = 1024  # tokens in `logit_bias`, and in `stop_token_ids`


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How each next token is chosen and when to stop. Names and meanings are those of vLLM and OpenAI.

    `temperature` 0 always takes the likeliest token. `top_k` 0 considers the whole vocabulary. `repetition_penalty`
    counts the prompt, too; `frequency_penalty` and `presence_penalty` only what was generated. Up to `min_tokens` of
    them no stop string ends the text, and no token that would end it is chosen. Raises InvalidRequest.
    """

    max_tokens: int = 16
    min_tokens: int = 0
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int = 0

    def __post_init__(self) -> None:
        for name, tokens in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            if len(tokens) > NAMED_LIMIT:
                raise InvalidRequest(name, f"{len(tokens)} tokens", f"at most {NAMED_LIMIT}")
        for name, holds, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, f"0 to max_tokens ({self.max_tokens})"),
            ("temperature", 0 <= self.temperature < math.inf, "a finite number, 0 or more"),
            ("top_k", self.top_k >= 0, "at least 1, or 0 for the whole vocabulary"),
            ("top_p", 0 < self.top_p <= 1, "more than 0, at most 1"),
            ("min_p", 0 <= self.min_p <= 1, "0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a finite number above 0"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "-2 to 2"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "-2 to 2"),
            ("seed", self.seed is None or 0 <= self.seed < 2**64, "0 to 2**64 - 1"),
            ("logprobs", 0 <= self.logprobs <= LIKELIEST_LIMIT, f"0 to {LIKELIEST_LIMIT}"),
        ):
            if not holds:
                raise InvalidRequest(name, str(getattr(self, name)), expected)
        for token, bias in self.logit_bias.items():
            if not -100 <= bias <= 100:
                raise InvalidRequest(f"logit_bias[{token}]", str(bias), "-100 to 100")

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raise InvalidRequest if it names a token that the model does not have."""
        for name, tokens in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            for token in tokens:
                if not 0 <= token < vocabulary:
                    raise InvalidRequest(name, f"token {token}", f"0 to {vocabulary - 1}")


@dataclass(frozen=True, kw_only=True)
class TokenOutput:
    """One generated token.

    Log-probabilities are those of the model, before temperature, penalties and filters. `top` has the `logprobs`
    likeliest tokens if asked for, the likeliest first. What the server cancels ends with a step without token.
    """

    token_id: int | None
    logprob: float = math.nan
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: str = ""  # on the last: stop, length or cancelled
    stop_reason: str = ""  # on the last: the token of `stop_token_ids` that ended it
    seed: int
    usage: Usage  # so far
