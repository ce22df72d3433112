"""The token of a call: where gRPC has it, and which calls need one."""

from collections.abc import Collection

import grpc

from server.auth.access import Access, Need
from server.auth.tokens import Client
from server.rpc.services import HEALTH, OPEN_INFERENCE, REFLECTION

AUTHORIZATION = "authorization"  # metadata
ADMINISTRATION = frozenset(f"/{OPEN_INFERENCE}/{method}" for method in ("RepositoryModelLoad", "RepositoryModelUnload"))


class Authentication:
    """Finds the client of each call."""

    def __init__(self, access: Access, *, with_reflection: bool = False) -> None:
        """`with_reflection`: reflection needs a token, too."""
        self._access = access
        self._public: Collection[str] = (HEALTH,) if with_reflection else (HEALTH, REFLECTION)

    def client(self, call: grpc.HandlerCallDetails) -> Client | None:
        """The client of a call; None if no token is necessary. Raises Unauthenticated and PermissionDenied."""
        if self._access.is_open:
            return None
        metadata = call.invocation_metadata or ()
        values = [value for key, value in metadata if key == AUTHORIZATION and isinstance(value, str)]
        return self._access.client(self._need(str(call.method)), values)

    def _need(self, path: str) -> Need:
        if path.removeprefix("/").partition("/")[0] in self._public:
            return "nothing"
        return "admin" if path in ADMINISTRATION else "token"
