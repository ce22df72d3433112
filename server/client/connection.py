"""How a client reaches its server: addresses, TLS, the token, the deadline and the retries. Opens no connection."""

import ipaddress
import json
import os
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

DEFAULT_SERVER = "127.0.0.1:8001"
TOKEN_VARIABLE = "AFFINITY_TOKEN"
DNS = "dns:"
MAX_TIMEOUT_S = 1_000_000  # gRPC takes much longer ones for times in the past

# gRPC waits as long as the server says in the trailing metadata grpc-retry-pushback-ms, which RESOURCE_EXHAUSTED has.
# Every call may be sent again: none of them changes anything.
RETRIES: dict[str, Any] = {
    "maxAttempts": 5,  # gRPC makes no more
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
}
# Calls go to the replicas in turn, but not to those that report that they are not serving.
BALANCING: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    "healthCheckConfig": {"serviceName": ""},
}
OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.per_rpc_retry_buffer_size", 16 * 2**20),  # of requests that can be sent again; 256 KiB by default
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 2_000),  # 2 minutes by default: a replica that was restarted would get no calls
    ("grpc.dns_min_time_between_resolutions_ms", 5_000),  # 30 s by default: new replicas would get no calls
    ("grpc.keepalive_time_ms", 60_000),  # detects servers that vanish without closing the connection
    ("grpc.keepalive_timeout_ms", 20_000),
)


@dataclass(frozen=True)
class Tls:
    """Connect with TLS. The files are in PEM format.

    `ca` has the certificates of the authorities to trust; None: those that gRPC trusts. `certificate` and `key` are
    those of the client, for servers that require them (mutual TLS). `server_name` is the name in the server's
    certificate, if it is not the name or address in the client's `server`.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    server_name: str = ""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            found, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise ValueError(f"TLS: found a {found} without a {missing}, expected both")

    def credentials(self) -> grpc.ChannelCredentials:
        """Read the files. Raises OSError if one of them cannot be read, and ValueError if it cannot be used."""
        contents = tuple(map(_contents, (self.ca, self.key, self.certificate)))
        self._check()
        return grpc.ssl_channel_credentials(*contents)

    def _check(self) -> None:
        """Load the files as gRPC will, which says only that it has failed."""
        context, files = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), str(self.ca)
        try:
            if self.ca is not None:
                context.load_verify_locations(cadata=self.ca.read_text("ascii", "ignore"))
            if self.certificate is not None:
                files = f"{self.certificate} and {self.key}"
                context.load_cert_chain(self.certificate, self.key, password="")
        except (ssl.SSLError, ValueError) as error:  # ValueError: an empty file
            reason = error.reason if isinstance(error, ssl.SSLError) else error
            raise ValueError(f"TLS: {files}: cannot be used: {reason}") from error


@dataclass(frozen=True)
class Connection:
    """What a channel and its calls need. Raises ValueError for an invalid address, timeout or token.

    `server` is an address, `dns:///NAME:PORT` for all addresses of a name, or several addresses separated by commas.
    `token` None takes the token from the environment variable AFFINITY_TOKEN; an empty one sends none.
    """

    server: str = DEFAULT_SERVER
    timeout_s: float = 60.0
    tls: Tls | None = None
    token: str | None = field(default=None, repr=False)
    retries: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= MAX_TIMEOUT_S:  # neither is NaN
            raise ValueError(f"timeout: found {self.timeout_s:g} s, expected more than 0 and at most {MAX_TIMEOUT_S}")
        if self.server in ("", DNS, f"{DNS}///"):
            raise ValueError(f"server: found {self.server!r}, expected an address")
        if "," in self.server and self.tls is not None and not self.tls.server_name:
            expected = "the server_name in the certificates of all of them (--tls-server-name)"
            raise ValueError(f"server: found several addresses with TLS, expected {expected}")
        token = token_in(os.environ) if self.token is None else self.token
        object.__setattr__(self, "token", checked_token(token, source="token"))

    @property
    def target(self) -> str:
        """The server as gRPC spells it."""
        addresses = [address.strip() for address in self.server.split(",")]
        return addresses[0] if len(addresses) == 1 else _address_list(addresses)

    @property
    def balanced(self) -> bool:
        """Whether calls are distributed over several replicas."""
        return "," in self.server or self.server.startswith(DNS)

    @property
    def options(self) -> list[tuple[str, Any]]:
        """The options of the channel."""
        config: dict[str, Any] = {**BALANCING} if self.balanced else {}
        if self.retries:
            config["methodConfig"] = [{"name": [{}], "retryPolicy": RETRIES}]
        options = [*OPTIONS, ("grpc.enable_retries", int(self.retries)), ("grpc.service_config", json.dumps(config))]
        if self.tls is not None and self.tls.server_name:
            options.append(("grpc.ssl_target_name_override", self.tls.server_name))
            options.append(("grpc.default_authority", self.tls.server_name))
        return options

    @property
    def call_options(self) -> dict[str, Any]:
        """The arguments of each call beside its request: the deadline and the token."""
        return {
            "timeout": self.timeout_s,
            "metadata": [("authorization", f"Bearer {self.token}")] if self.token else [],
        }


def is_local(server: str) -> bool:
    """Whether the server is on this machine, so that no data leaves it."""
    hosts = [address.strip().removeprefix("dns:///").rpartition(":")[0] for address in server.split(",")]
    return server.startswith("unix:") or all(
        host == "localhost" or host == "[::1]" or host.startswith("127.") for host in hosts
    )


def token_in(environ: Mapping[str, str]) -> str:
    """The token of the environment, or nothing."""
    return checked_token(environ.get(TOKEN_VARIABLE, "").strip(), source=TOKEN_VARIABLE)


def read_token(file: Path) -> str:
    """The token in a file, in one line. Raises OSError or ValueError, which name the file and not its content."""
    token = checked_token(file.read_text("utf-8", "replace").strip(), source=str(file))
    if not token:
        raise ValueError(f"{file}: found an empty file, expected a token")
    return token


def checked_token(token: str, *, source: str) -> str:
    """The token. gRPC would quote one that metadata cannot hold in its error."""
    if not (token.isascii() and token.isprintable() and " " not in token):
        raise ValueError(f"{source}: found spaces, control characters or letters outside of ASCII, expected a token")
    return token


def _contents(file: Path | None) -> bytes | None:
    return None if file is None else file.read_bytes()


def _address_list(addresses: list[str]) -> str:
    kinds = {_kind(address) for address in addresses}
    if len(kinds) > 1:
        raise ValueError(f"server: found {' and '.join(sorted(kinds))} addresses, expected one kind in a list")
    return f"{kinds.pop()}:{','.join(addresses)}"


def _kind(address: str) -> str:
    """The scheme of gRPC for an IP address and a port."""
    host, _, port = address.rpartition(":")
    try:
        if not port.isdecimal():
            raise ValueError
        found = ipaddress.ip_address(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
    except ValueError:
        expected = "an IP address and a port; for all addresses of a name use dns:///NAME:PORT"
        raise ValueError(f"server: found {address!r} in a list, expected {expected}") from None
    return f"ipv{found.version}"
