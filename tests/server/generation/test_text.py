"""The detokenizer and stop strings: whole characters only, and no text after a stop string."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from server.errors import InvalidRequest
from server.generation.request import ListLimits
from server.text.detokenizer import Detokenizer, StopStrings

ALPHABET = sorted(pre_tokenizers.ByteLevel.alphabet())
END = 256


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A tokenizer with one token for each byte, and a special token."""
    bytewise = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(ALPHABET)}, merges=[]))
    bytewise.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytewise.decoder = decoders.ByteLevel()
    bytewise.add_special_tokens(["<end>"])
    return bytewise


def deltas(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [*(detokenizer.push(token) for token in ids), detokenizer.flush()]


@given(text=st.text(max_size=30))
def test_deltas_are_whole_characters_and_together_the_text(tokenizer, text):
    found = deltas(tokenizer, tokenizer.encode(text).ids)
    assert "".join(found) == text
    assert all("\ufffd" not in delta or "\ufffd" in text for delta in found)


@given(ids=st.lists(st.integers(0, END), max_size=60))
def test_deltas_of_random_tokens_are_together_the_decoded_text(tokenizer, ids):
    found = "".join(deltas(tokenizer, ids))
    assert found == tokenizer.decode(ids, skip_special_tokens=True)
    found.encode()  # valid UTF-8, whatever the bytes were


def test_an_incomplete_character_waits_for_its_other_bytes(tokenizer):
    first, second = tokenizer.encode("é").ids
    detokenizer = Detokenizer(tokenizer)
    assert (detokenizer.push(first), detokenizer.push(second)) == ("", "é")


def test_an_incomplete_character_at_the_end_becomes_the_replacement_character(tokenizer):
    assert deltas(tokenizer, tokenizer.encode("aé").ids[:-1]) == ["a", "", "\ufffd"]


def first_stop(text: str, stops: list[str], after: int) -> tuple[int, str] | None:
    """The first end of a stop string after `after` characters, and the longest stop string that ends there."""
    ends = (end for end in range(after + 1, len(text) + 1) if any(text[:end].endswith(stop) for stop in stops))
    end = next(ends, None)
    return None if end is None else (end, max((stop for stop in stops if text[:end].endswith(stop)), key=len))


FEW_LETTERS = st.text("ab", max_size=12)


@given(
    chunks=st.lists(FEW_LETTERS, max_size=8),
    stops=st.lists(st.text("ab", min_size=1, max_size=4), max_size=4),
    include=st.booleans(),
    early=st.integers(0, 3),
)
def test_the_output_is_the_text_up_to_the_first_stop_string(chunks, stops, include, early):
    matcher, skipped = StopStrings(stops, include=include), "".join(chunks[:early])
    shown = "".join([*map(matcher.skip, chunks[:early]), *map(matcher.push, chunks[early:]), matcher.flush()])
    text = "".join(chunks)
    if (found := first_stop(text, stops, len(skipped))) is None:
        assert (shown, matcher.matched) == (text, "")
    else:
        end, stop = found
        assert (shown, matcher.matched) == (text[: end if include else end - len(stop)], stop)


@given(chunks=st.lists(FEW_LETTERS, max_size=8), stop=st.text("ab", min_size=1, max_size=4))
def test_only_a_possible_beginning_of_a_stop_string_is_held_back(chunks, stop):
    matcher, shown, text = StopStrings([stop], include=False), "", ""
    for chunk in chunks:
        shown, text = shown + matcher.push(chunk), text + chunk
        if matcher.matched:
            break
        assert text.startswith(shown)
        assert stop.startswith(text[len(shown) :])


def test_without_stop_strings_no_text_is_held_back():
    assert StopStrings([], include=False).push("abc") == "abc"


def test_an_empty_stop_string_is_refused():
    with pytest.raises(InvalidRequest, match=r"stop\[1\]: found an empty string"):
        StopStrings(["a", ""], include=False)


def test_the_number_and_the_length_of_stop_strings_are_limited():
    limits = ListLimits(stop_strings=2, stop_characters=3)
    limits.check_stop(["abc", "d"])
    with pytest.raises(InvalidRequest, match="stop: found 3 strings, expected at most 2"):
        limits.check_stop(["x"] * 3)
    with pytest.raises(InvalidRequest, match=r"stop\[1\]: found 4 characters, expected at most 3"):
        limits.check_stop(["a", "abcd"])
