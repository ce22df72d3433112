"""The file of tokens, and the decision about a call."""

import hashlib

import pytest

from server.auth.access import Access
from server.auth.tokens import MAX_TOKENS, BadTokens, Client, Tokens
from server.errors import PermissionDenied, Unauthenticated
from tests.serving import ROOT

HASHED = hashlib.sha256(b"the token of carol").hexdigest()
FILE = f"""
# clients of the shop
alice: a-token
  bob :  b:token#1   admin
carol: sha256:{HASHED}

dave: sha256:{hashlib.sha256(b"d").hexdigest().upper()} admin
alice: her-next-token
"""


@pytest.mark.parametrize(
    ("token", "client"),
    [
        ("a-token", Client("alice")),
        ("her-next-token", Client("alice")),
        ("b:token#1", Client("bob", admin=True)),
        ("d", Client("dave", admin=True)),
        (HASHED, None),
        (f"sha256:{HASHED}", None),
        ("a-toke", None),
        ("a-token ", None),
        ("A-TOKEN", None),
        ("", None),
        ("alice", None),
        ("\udc80 surrogate", None),
    ],
)
def test_a_token_belongs_to_one_client_or_to_none(token, client):
    assert Tokens.parse(FILE.encode()).find(token) == client


@pytest.mark.parametrize("encoded", [FILE.replace("\n", "\r\n").encode(), FILE.encode("utf-8-sig")])
def test_files_of_other_systems_are_read(encoded):
    tokens = Tokens.parse(encoded)
    assert tokens.find("her-next-token") == Client("alice")
    assert tokens.names == {"alice", "bob", "carol", "dave"}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("s3cret", "line 2: expected `NAME: TOKEN` or"),
        ("eve s3cret", "line 2: expected `NAME: TOKEN` or"),
        (": s3cret", "line 2: expected `NAME: TOKEN` or"),
        ("e v e: s3cret", "line 2: expected `NAME: TOKEN` or"),
        ('e"}: s3cret', "line 2: expected `NAME: TOKEN` or"),
        ("e" * 65 + ": s3cret", "line 2: expected `NAME: TOKEN` or"),
        ("eve: s3cret root", "line 2: expected `NAME: TOKEN` or"),
        ("eve: s3cret admin admin", "line 2: expected `NAME: TOKEN` or"),
        ("eve:", "line 2: expected a token of printable ASCII characters without spaces"),
        ("eve: s3crét", "line 2: expected a token of printable ASCII characters without spaces"),
        ("eve: sha256:s3cret", "line 2: expected 64 hexadecimal digits after sha256:"),
        ("eve: sha256:", "line 2: expected 64 hexadecimal digits after sha256:"),
        ("eve: SHA256:s3cret", "line 2: expected 64 hexadecimal digits after sha256:"),
        (f"eve: sha256:{hashlib.sha256(b'').hexdigest()}", "line 2: expected the digest of a token"),
        (f"eve: SHA256:{hashlib.sha256(b'').hexdigest().upper()} admin", "line 2: expected the digest of a token"),
        ("eve: admin", "line 2: expected a token before `admin`"),
        ("eve: admin admin", "line 2: expected a token before `admin`"),
        (f"eve: sha256:{HASHED}0", "line 2: expected 64 hexadecimal digits after sha256:"),
        ("eve: the-first-s3cret", "line 2: expected a token that no line before has"),
        (f"eve: sha256:{hashlib.sha256(b'the-first-s3cret').hexdigest()}", "line 2: expected a token that no line"),
    ],
)
def test_a_wrong_line_is_named_and_not_quoted(line, expected):
    with pytest.raises(BadTokens) as error:
        Tokens.parse(f"alice: the-first-s3cret\n{line}\nbob: s3cret-of-bob".encode())
    assert expected in str(error.value)
    assert "s3cr" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_line_that_is_no_text_is_named():
    with pytest.raises(BadTokens, match="line 2: expected text in UTF-8"):
        Tokens.parse(b"alice: token\nbob: \xff\n")


@pytest.mark.parametrize("number", [0, MAX_TOKENS + 1])
def test_the_number_of_tokens_is_limited(number):
    lines = "".join(f"client-{each}: token-{each}\n" for each in range(number))
    with pytest.raises(BadTokens, match=f"found {number} tokens, expected 1 to 1000"):
        Tokens.parse(f"# none\n{lines}".encode())


def test_the_example_of_the_readme_is_read():
    section = (ROOT / "server" / "README.md").read_text("utf-8").partition("\n## Security\n")[2]
    tokens = Tokens.parse(section.split("```")[1].encode())
    assert tokens.names == {"shop", "search", "operator"}


# ---- decisions

ACCESS = Access(lambda: Tokens.parse(b"alice: a\nroot: r admin"))
SAID = "authorization: expected `Bearer` and a valid token"


@pytest.mark.parametrize("header", ["Bearer a", "bearer a", "BEARER  a ", " Bearer a"])
def test_the_scheme_may_be_written_in_any_case(header):
    assert ACCESS.client("token", [header]) == Client("alice")


@pytest.mark.parametrize("need", ["token", "admin"])
@pytest.mark.parametrize(
    "headers", [[], [""], ["Bearer"], ["Bearer "], ["Bearer wrong"], ["Basic a"], ["a"], ["Bearer a", "Bearer a"]]
)
def test_wrong_and_missing_tokens_are_indistinguishable(need, headers):
    with pytest.raises(Unauthenticated) as error:
        ACCESS.client(need, headers)
    assert str(error.value) == SAID


@pytest.mark.parametrize("headers", [[], [""], ["Bearer"], ["Bearer "], ["Basic x"], ["Bearer a", "Bearer a"]])
def test_a_call_without_a_token_is_refused_even_if_a_client_has_the_digest_of_nothing(headers):
    access = Access(lambda: Tokens({hashlib.sha256(b"").digest(): Client("eve", admin=True)}))
    with pytest.raises(Unauthenticated):
        access.client("token", headers)


def test_only_administrators_may_do_what_needs_one():
    assert ACCESS.client("admin", ["Bearer r"]) == ACCESS.client("token", ["Bearer r"]) == Client("root", admin=True)
    with pytest.raises(PermissionDenied, match="found the token of alice, expected one of an administrator"):
        ACCESS.client("admin", ["Bearer a"])


def test_what_needs_nothing_is_free_whatever_the_token():
    assert ACCESS.client("nothing", []) is None
    assert ACCESS.client("nothing", ["Bearer wrong"]) is None


@pytest.mark.parametrize("need", ["nothing", "token", "admin"])
def test_without_tokens_everything_is_free(need):
    assert Access().client(need, []) is None
