"""Where gRPC listens: the addresses of a host, with or without TLS, and Unix-domain sockets."""

from collections.abc import Sequence

import grpc

from server.auth.certificates import CERT, KEY, Certificates
from server.host.listening import CannotListen, listen, spell
from server.host.unix_socket import UnixSocket
from server.host.watched_files import BadFile, WatchedFiles


def add_ports(
    server: grpc.aio.Server, host: str, port: int, certificates: WatchedFiles[Certificates] | None = None
) -> int:
    """Let gRPC listen on every address of the host, and return the port that they share.

    The port is bound before gRPC does it, because gRPC writes its own lines to stderr if that fails.
    """
    bound = []
    for taken in listen(host, port, flag="--port"):
        with taken:
            bound.append(taken.getsockname())
    if len(bound) > 1:
        port = bound[0][1]
    try:
        return [_add_port(server, spell(address, port), certificates) for address in bound][0]
    except RuntimeError as error:
        raise CannotListen(f"cannot listen on port {port} of {host}: {error}; --port chooses another") from error


def add_unix_sockets(server: grpc.aio.Server, sockets: Sequence[UnixSocket]) -> list[str]:
    """Let gRPC listen on Unix-domain sockets, without TLS. Returns the names that they are bound to."""
    for each in sockets:
        with each.binding() as name:
            try:
                server.add_insecure_port(f"unix:{name}")
            except RuntimeError as error:
                raise CannotListen(f"cannot listen on unix:{each.path}: {error}; --listen chooses another") from error
    return [str(each.bound) for each in sockets]


def _add_port(server: grpc.aio.Server, address: str, certificates: WatchedFiles[Certificates] | None) -> int:
    if certificates is None:
        return server.add_insecure_port(address)
    try:
        return server.add_secure_port(address, _credentials(certificates))
    except RuntimeError as error:  # the port has been tried without TLS
        raise BadFile(f"{CERT} and {KEY}: gRPC cannot use this certificate with this key") from error


def _credentials(certificates: WatchedFiles[Certificates]) -> grpc.ServerCredentials:
    """Credentials of one port. gRPC calls the function before each handshake, from a thread of its own."""
    used = certificates.value

    def fetch() -> grpc.ServerCertificateConfiguration | None:
        nonlocal used
        if certificates.value is used:
            return None
        used = certificates.value
        return _configuration(used)

    return grpc.dynamic_ssl_server_credentials(
        _configuration(used),
        fetch,  # type: ignore[arg-type]  # None, which the stub forgets, means no change
        require_client_authentication=used.client_ca is not None,
    )


def _configuration(certificates: Certificates) -> grpc.ServerCertificateConfiguration:
    pairs = [(certificates.key, certificates.chain)]
    return grpc.ssl_server_certificate_configuration(pairs, root_certificates=certificates.client_ca)
