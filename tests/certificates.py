"""Authorities and certificates for tests, in files."""

import datetime
from pathlib import Path
from typing import NamedTuple

import grpc
import trustme

LOCAL = ("localhost", "127.0.0.1", "::1")
YESTERDAY = datetime.datetime.now(datetime.UTC) - datetime.timedelta(days=1)
LAST_YEAR = YESTERDAY - datetime.timedelta(days=365)


class Signed(NamedTuple):
    """The files of a certificate and of its key."""

    certificate: Path
    key: Path

    def replace_by(self, other: "Signed") -> None:
        """Overwrite both files with those of another certificate, one after the other, as `cp` does."""
        self.certificate.write_bytes(other.certificate.read_bytes())
        self.key.write_bytes(other.key.read_bytes())


class Authority:
    """An authority that signs certificates. Its files are `NAME.pem` and `NAME.key` in a directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        directory.mkdir(exist_ok=True)
        self._directory, self._authority = directory, trustme.CA(organization_name=name)
        self.certificate = directory / f"{name}.pem"
        self._authority.cert_pem.write_to_path(self.certificate)

    def sign(self, name: str, *, names: tuple[str, ...] = LOCAL, expired: bool = False) -> Signed:
        """The files of a certificate for these names and addresses, and of its key."""
        validity = {"not_before": LAST_YEAR, "not_after": YESTERDAY} if expired else {}
        issued = self._authority.issue_cert(*names, common_name=name, **validity)
        signed = Signed(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        signed.certificate.write_bytes(b"".join(pem.bytes() for pem in issued.cert_chain_pems))
        issued.private_key_pem.write_to_path(signed.key)
        return signed

    def credentials(self, client: Signed | None = None) -> grpc.ChannelCredentials:
        """Those of a gRPC client that trusts this authority, with a certificate of its own or without."""
        own = (client.key.read_bytes(), client.certificate.read_bytes()) if client else (None, None)
        return grpc.ssl_channel_credentials(self.certificate.read_bytes(), *own)


def server_credentials(files: tuple[Path, Path], *, client_ca: Path | None = None) -> grpc.ServerCredentials:
    """Credentials for a gRPC server; with `client_ca` it requires a certificate of each client."""
    certificate, key = (file.read_bytes() for file in files)
    return grpc.ssl_server_credentials(
        [(key, certificate)], client_ca and client_ca.read_bytes(), require_client_auth=client_ca is not None
    )
