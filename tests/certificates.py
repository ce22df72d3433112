"""Certificates for tests, made with the command line of OpenSSL."""

import subprocess
from pathlib import Path

import grpc

LOCAL = "DNS:localhost,IP:127.0.0.1,IP:::1"


class Authority:
    """An authority that signs certificates. Its files are `NAME.pem` and `NAME.key` in a directory."""

    def __init__(self, directory: Path, name: str = "authority") -> None:
        self._directory, self._name = directory, name
        self.certificate, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        _openssl("-keyout", self._key, "-out", self.certificate, "-subj", f"/CN={name}")

    def sign(self, name: str, *, names: str = LOCAL) -> tuple[Path, Path]:
        """The files of a certificate for these names and addresses, and of its key."""
        certificate, key = self._directory / f"{name}.pem", self._directory / f"{name}.key"
        extension = f"subjectAltName={names}"
        signed_by = ("-CA", self.certificate, "-CAkey", self._key)
        _openssl("-keyout", key, "-out", certificate, "-subj", f"/CN={name}", "-addext", extension, *signed_by)
        return certificate, key


def server_credentials(files: tuple[Path, Path], *, client_ca: Path | None = None) -> grpc.ServerCredentials:
    """Credentials for a gRPC server; with `client_ca` it requires a certificate of each client."""
    certificate, key = (file.read_bytes() for file in files)
    return grpc.ssl_server_credentials(
        [(key, certificate)], client_ca and client_ca.read_bytes(), require_client_auth=client_ca is not None
    )


def _openssl(*arguments: str | Path) -> None:
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    subprocess.run(["openssl", "req", "-x509", *curve, *arguments], check=True, capture_output=True)
