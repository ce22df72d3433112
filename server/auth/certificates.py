"""The server's certificate, its key, and the authorities whose client certificates the server accepts."""

import re
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from server.host.watched_files import BadFile, Contents, WatchedFiles

CERT, KEY, CLIENT_CA = "--tls-cert", "--tls-key", "--tls-client-ca"
PEM_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----")
PEM_KEY = re.compile(rb"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----")
PEM_ENCRYPTED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|^Proc-Type: 4,ENCRYPTED", re.MULTILINE)


@dataclass(frozen=True)
class Certificates:
    """Certificate chain, key and authorities in PEM, and a context for servers that use Python's TLS."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext


def watch_certificates(cert: Path, key: Path, client_ca: Path | None) -> WatchedFiles[Certificates]:
    """Read the files, and again when they change. Raises BadFile."""
    files = {CERT: cert, KEY: key} | ({CLIENT_CA: client_ca} if client_ca else {})
    return WatchedFiles(files, lambda contents: _parse(files, contents))


def _parse(files: Mapping[str, Path], contents: Contents) -> Certificates:
    if not PEM_CERTIFICATE.search(contents[CERT]):
        raise BadFile(f"{CERT} {files[CERT]}: found no certificate, expected one in PEM")
    if PEM_ENCRYPTED.search(contents[KEY]):
        raise BadFile(f"{KEY} {files[KEY]}: found an encrypted key, expected one without a password")
    if not PEM_KEY.search(contents[KEY]):
        raise BadFile(f"{KEY} {files[KEY]}: found no private key, expected one in PEM")
    context = _context(files)
    for flag in (CERT, KEY):  # the context was made from the files, gRPC gets the contents
        if not _has(files[flag], contents[flag]):
            raise BadFile(f"{flag} {files[flag]}: changed while it was read")
    if CLIENT_CA in contents:
        _trust(context, contents[CLIENT_CA], f"{CLIENT_CA} {files[CLIENT_CA]}")
    return Certificates(contents[CERT], contents[KEY], contents.get(CLIENT_CA), context)


def _has(file: Path, contents: bytes) -> bool:
    with suppress(OSError):  # it was deleted meanwhile
        return file.read_bytes() == contents
    return False


def _context(files: Mapping[str, Path]) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(files[CERT], files[KEY], password="")
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise BadFile(f"{KEY} {files[KEY]}: found another key than that of {CERT} {files[CERT]}") from error
        raise BadFile(f"{CERT} {files[CERT]} and {KEY} {files[KEY]}: cannot be used: {error.reason}") from error
    except OSError as error:  # it was deleted meanwhile
        raise BadFile(f"{CERT} {files[CERT]} and {KEY} {files[KEY]}: {error.strerror}") from error
    return context


def _trust(context: ssl.SSLContext, authorities: bytes, name: str) -> None:
    """Verify client certificates. Clients may have none: those of gRPC must, probes over HTTP need not."""
    if not PEM_CERTIFICATE.search(authorities):
        raise BadFile(f"{name}: found no certificate, expected those of authorities in PEM")
    try:
        context.load_verify_locations(cadata=authorities.decode("ascii", "replace"))
    except ssl.SSLError as error:
        raise BadFile(f"{name}: cannot be used: {error.reason}") from error
    context.verify_mode = ssl.CERT_OPTIONAL
    context.options |= ssl.OP_NO_TICKET  # a client could resume a session after the authorities have changed
    context.num_tickets = 0
