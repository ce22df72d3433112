"""The file of tokens: its format, and the client that a token belongs to. Pure: works on text, not on files.

Each line is `NAME: TOKEN` or `NAME: sha256:HEX`, and may end with ` admin`. Blank lines and lines that begin with `#`
are ignored. A name can have several tokens, so that a client can change its token without an interruption.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hmac import compare_digest

ADMIN = "admin"
HASHED = "sha256:"
MAX_TOKENS = 1000  # each call is compared with all of them, and each name is a label of a metric
NAME = re.compile(r"[A-Za-z0-9._@-]{1,64}", re.ASCII)
TOKEN = re.compile(r"[!-~]{1,4096}", re.ASCII)
DIGEST = re.compile(r"[0-9a-fA-F]{64}", re.ASCII)
NOTHING = hashlib.sha256(b"").digest()  # a call without a token would have the token with this digest
EXPECTED = "`NAME: TOKEN` or `NAME: sha256:HEX`, with ` admin` after it for an administrator"


class BadTokens(ValueError):
    """Names the line and what was expected there; quotes nothing, because that could be a token."""


@dataclass(frozen=True)
class Client:
    """A client that has shown a token."""

    name: str
    admin: bool = False


class Tokens:
    """The clients by the SHA-256 digests of their tokens."""

    def __init__(self, clients: Mapping[bytes, Client]) -> None:
        self._clients = dict(clients)

    @classmethod
    def parse(cls, contents: bytes) -> "Tokens":
        """Parse the contents of a file. Raises BadTokens."""
        try:
            lines = contents.decode("utf-8-sig").split("\n")
        except UnicodeDecodeError as error:
            before = contents.count(b"\n", 0, error.start)
            raise BadTokens(f"line {before + 1}: expected text in UTF-8") from None
        clients: dict[bytes, Client] = {}
        for number, line in enumerate(map(str.strip, lines), 1):
            if not line or line.startswith("#"):
                continue
            digest, client = _parse_line(number, line)
            if digest in clients:
                raise BadTokens(f"line {number}: expected a token that no line before has")
            clients[digest] = client
        if not 0 < len(clients) <= MAX_TOKENS:
            raise BadTokens(f"found {len(clients)} tokens, expected 1 to {MAX_TOKENS}")
        return cls(clients)

    @property
    def names(self) -> frozenset[str]:
        return frozenset(client.name for client in self._clients.values())

    def find(self, token: str) -> Client | None:
        """The client of a token. The time does not depend on how similar the token is to a valid one."""
        presented = hashlib.sha256(token.encode("utf-8", "replace")).digest()
        found = None
        for digest, client in self._clients.items():
            found = client if compare_digest(digest, presented) else found
        return found


def _parse_line(number: int, line: str) -> tuple[bytes, Client]:
    name, colon, rest = line.partition(":")
    token, *words = rest.split() or [""]
    if not colon or not NAME.fullmatch(name := name.strip()) or words not in ([], [ADMIN]):
        raise BadTokens(f"line {number}: expected {EXPECTED}")
    client = Client(name, admin=words == [ADMIN])
    if token.lower().startswith(HASHED):
        hexadecimal = token[len(HASHED) :]
        if not DIGEST.fullmatch(hexadecimal):
            raise BadTokens(f"line {number}: expected 64 hexadecimal digits after {HASHED}")
        if (digest := bytes.fromhex(hexadecimal)) == NOTHING:
            raise BadTokens(f"line {number}: expected the digest of a token, found that of an empty text")
        return digest, client
    if token == ADMIN:
        raise BadTokens(f"line {number}: expected a token before `{ADMIN}`")
    if not TOKEN.fullmatch(token):
        raise BadTokens(f"line {number}: expected a token of printable ASCII characters without spaces")
    return hashlib.sha256(token.encode()).digest(), client
