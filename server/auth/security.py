"""The tokens and certificates that the settings name, read again while the server runs."""

import asyncio
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.auth.access import Access
from server.auth.certificates import Certificates, watch_certificates
from server.auth.tokens import BadTokens, Tokens
from server.config.settings import Settings
from server.host.watched_files import BadFile, Contents, WatchedFiles

REFRESH_S = 0.5  # a change is used after two refreshes

TOKENS = "--auth-tokens"

log = logging.getLogger("server")


@dataclass(frozen=True)
class Security:
    """Without arguments: no TLS, and every call may be made."""

    access: Access = Access()
    certificates: WatchedFiles[Certificates] | None = None
    with_reflection: bool = False  # needs a token, too
    with_metrics: bool = False
    watched: tuple[WatchedFiles[Any], ...] = ()
    changed: Callable[[], None] = lambda: None

    @classmethod
    def open(cls, settings: Settings, *, clients_changed: Callable[[Iterable[str]], None]) -> "Security":
        """Read the files. `clients_changed` is called with the names of all clients, now and after a change.

        Raises BadFile.
        """
        certificates, tokens = None, None
        if settings.tls_cert and settings.tls_key:
            certificates = watch_certificates(settings.tls_cert, settings.tls_key, settings.tls_client_ca)
        if settings.auth_tokens:
            tokens = watch_tokens(settings.auth_tokens)
        security = cls(
            access=Access(lambda: tokens.value) if tokens else Access(),
            certificates=certificates,
            with_reflection="reflection" in settings.auth_also,
            with_metrics="metrics" in settings.auth_also,
            watched=tuple(each for each in (certificates, tokens) if each),
            changed=lambda: clients_changed(tokens.value.names if tokens else ()),
        )
        security.changed()
        return security

    async def keep_fresh(self) -> None:
        """Read the files again and again, until the task is cancelled."""
        while self.watched:
            await asyncio.sleep(REFRESH_S)
            try:
                for each in self.watched:
                    if await asyncio.to_thread(each.refresh):
                        self.changed()
            except Exception:
                log.exception("reading certificates and tokens again failed")


def watch_tokens(file: Path) -> WatchedFiles[Tokens]:
    """Read the tokens, and again when the file changes. Raises BadFile."""

    def parse(contents: Contents) -> Tokens:
        try:
            return Tokens.parse(contents[TOKENS])
        except BadTokens as error:
            raise BadFile(f"{TOKENS} {file}: {error}") from None

    return WatchedFiles({TOKENS: file}, parse)
