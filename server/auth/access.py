"""Decides whether a call may be made, by the token that came with it. Pure: knows neither gRPC nor HTTP."""

from collections.abc import Callable, Sequence
from typing import Literal

from server.auth.tokens import Client, Tokens
from server.errors import PermissionDenied, Unauthenticated

Need = Literal["nothing", "token", "admin"]  # of a call

SCHEME = "bearer"


class Access:
    """The decision for one server. Without tokens every call may be made."""

    def __init__(self, tokens: Callable[[], Tokens] | None = None) -> None:
        """`tokens` returns those that are valid now."""
        self._tokens = tokens

    @property
    def is_open(self) -> bool:
        """Whether every call may be made."""
        return self._tokens is None

    def client(self, need: Need, authorization: Sequence[str]) -> Client | None:
        """The client that makes a call; None if no token is necessary.

        `authorization` are the values of the header of that name. Raises Unauthenticated, with the same text whether
        there is no token or an invalid one, and PermissionDenied.
        """
        if self._tokens is None or need == "nothing":
            return None
        token = _token(authorization)
        client = self._tokens().find(token) if token else None
        if client is None:
            raise Unauthenticated("authorization: expected `Bearer` and a valid token")
        if need == "admin" and not client.admin:
            raise PermissionDenied(f"authorization: found the token of {client.name}, expected one of an administrator")
        return client


def _token(authorization: Sequence[str]) -> str:
    """The token of a header `Bearer TOKEN`, or "" without one."""
    if len(authorization) != 1:
        return ""
    scheme, _, token = authorization[0].strip().partition(" ")
    return token.strip() if scheme.lower() == SCHEME else ""
