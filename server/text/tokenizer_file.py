"""Opens the file of a tokenizer. Equal files with equal settings share one tokenizer in the process.

The tokenizers library (0.23.3) does not free the cache of a BPE tokenizer, which grows to 6 MB with the texts that it
encodes: a tokenizer of its own for each load would leak that much with each reload of a model.
"""

import functools
import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import Tokenizer

from server.errors import BadArtifact

MAX_TOKENIZERS = 64  # that stay in memory although their models may be unloaded


@dataclass(frozen=True, kw_only=True)
class TokenizerSettings:
    """How a tokenizer encodes. It never pads."""

    split_special_tokens: bool
    max_length: int | None = None  # in tokens; None: never truncate
    truncation_side: str = "right"


@dataclass(frozen=True)
class _File:
    """Files with the same contents are equal."""

    sha256: str
    path: Path = field(compare=False)


def open_tokenizer(path: Path, settings: TokenizerSettings) -> Tokenizer:
    """A tokenizer that threads and models may share; it must not be changed. BadArtifact if the file is not valid."""
    try:
        return _opened(_File(hashlib.sha256(path.read_bytes()).hexdigest(), path), settings)
    except OSError as error:
        raise BadArtifact(f"{path}: {error.strerror}") from error
    except BaseException as error:  # the tokenizers library raises nothing narrower
        reraise_if_foreign(error)
        raise BadArtifact(f"{path}: {error}") from error


@functools.lru_cache(MAX_TOKENIZERS)
def _opened(file: _File, settings: TokenizerSettings) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file.path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.encode_special_tokens = settings.split_special_tokens
    if settings.max_length is not None:
        side = settings.truncation_side
        tokenizer.enable_truncation(settings.max_length, strategy="longest_first", direction=side)
    return tokenizer


def reraise_if_foreign(error: BaseException) -> None:
    """Raise `error` again unless it is an `Exception` or a panic in the Rust code of tokenizers."""
    if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
        raise error
