"""Sampling parameters of a request, and the output of each generated token. Plain values: no text, slots or tensors."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from server.errors import InvalidRequest, shorten
from server.observability.observer import Usage

MAX_LOGPROBS = 20  # as in vLLM; fewer than the most likely tokens that a graph outputs (64)
MAX_BIAS = 100.0  # larger ones are clamped, as in vLLM
MAX_ESCAPED_CHARACTER, MAX_ENTRY_CHARACTERS = 12, 64  # of one character of a string, and of one number, in JSON


@dataclass(frozen=True, kw_only=True)
class ListLimits:
    """How many entries the lists of a request may have, and how long stop strings may be.

    The time of each token grows with all of them. The checks raise InvalidRequest.
    """

    stop_strings: int = 16
    stop_characters: int = 256
    logit_bias: int = 1024
    stop_token_ids: int = 1024

    def check_stop(self, stop: Sequence[str]) -> None:
        if len(stop) > self.stop_strings:
            raise InvalidRequest("stop", f"{len(stop)} strings", f"at most {self.stop_strings}")
        for index, text in enumerate(stop):
            if len(text) > self.stop_characters:
                expected = f"at most {self.stop_characters}"
                raise InvalidRequest(f"stop[{index}]", f"{len(text)} characters", expected)

    def check_tokens(self, name: str, count: int) -> None:
        """Check the number of entries of `logit_bias` or `stop_token_ids`."""
        if count > getattr(self, name):
            raise InvalidRequest(name, f"{count} tokens", f"at most {getattr(self, name)}")

    def check_json(self, name: str, text: str) -> None:
        """Check the length of a list as JSON, before it is parsed."""
        if name == "stop":
            maximum = self.stop_strings * (MAX_ESCAPED_CHARACTER * self.stop_characters + MAX_ENTRY_CHARACTERS)
        else:
            maximum = (getattr(self, name) + 1) * MAX_ENTRY_CHARACTERS
        if len(text) > maximum:
            raise InvalidRequest(name, repr(shorten(text)), f"at most {maximum} characters")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How each next token is chosen and when to stop. Names and meanings are those of vLLM and OpenAI.

    `temperature` 0 always chooses the most likely token. `top_k` 0 considers the whole vocabulary. The
    `repetition_penalty` applies to tokens of the prompt too, `frequency_penalty` and `presence_penalty` only to
    generated tokens. A `logit_bias` below -100 counts as -100, and one above 100 as 100. Before `min_tokens` tokens are
    generated, no stop string ends the text, and no token that would end it is chosen. Raises InvalidRequest.
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
            ("logprobs", 0 <= self.logprobs <= MAX_LOGPROBS, f"0 to {MAX_LOGPROBS}"),
        ):
            if not holds:
                raise InvalidRequest(name, str(getattr(self, name)), expected)
        for token, bias in self.logit_bias.items():
            if math.isnan(bias):
                raise InvalidRequest(f"logit_bias[{token}]", str(bias), "a number")

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raise InvalidRequest for a token id that the model does not have."""
        for name, tokens in (("logit_bias", self.logit_bias), ("stop_token_ids", self.stop_token_ids)):
            for token in tokens:
                if not 0 <= token < vocabulary:
                    raise InvalidRequest(name, f"token {token}", f"0 to {vocabulary - 1}")


@dataclass(frozen=True, kw_only=True)
class TokenOutput:
    """One generated token.

    Log-probabilities are those of the model, before temperature, penalties and filters. `top` has the ids and
    log-probabilities of the most likely tokens, as many as `Sampling.logprobs`, in descending order. A sequence that
    the server cancels ends with an output without a token.
    """

    token_id: int | None
    logprob: float = math.nan
    top: tuple[tuple[int, float], ...] = ()
    finish_reason: str = ""  # of the last output: stop, length or cancelled
    stop_reason: str = ""  # of the last output: the token of `stop_token_ids` that ended the sequence
    seed: int
    usage: Usage  # up to this token
