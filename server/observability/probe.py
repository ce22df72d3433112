"""`python -m server.observability.probe`: exits with 0 if the server on this machine is ready, else with 1.

The health check of the image. It uses /readyz, because clients of gRPC would need the names in the certificate, and
with mutual TLS a certificate of their own; on the same machine, neither proves anything.
"""

import http.client
import os
import ssl
import sys
from collections.abc import Mapping

from server.config.settings import Settings

HOST, TIMEOUT_S = "127.0.0.1", 4.0
NOT_READY = 1


def main(environ: Mapping[str, str]) -> int:
    """Send the request over TLS, and in plain text if the server has no TLS. Returns the exit code."""
    number = environ.get("AFFINITY_HTTP_PORT", "")
    port = int(number) if number.isdecimal() else Settings.http_port  # Kubernetes sets such variables, too
    for connection in (_encrypted(port), http.client.HTTPConnection(HOST, port, timeout=TIMEOUT_S)):
        try:
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            print(response.read().decode().strip())
            return 0 if response.status == http.client.OK else NOT_READY
        except (ssl.SSLError, http.client.HTTPException, ConnectionResetError):  # the server has no TLS
            continue
        except OSError as error:
            print(f"{HOST}:{port}: {error.strerror or error}")
            return NOT_READY
        finally:
            connection.close()
    print(f"{HOST}:{port}: no answer over HTTP")
    return NOT_READY


def _encrypted(port: int) -> http.client.HTTPSConnection:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return http.client.HTTPSConnection(HOST, port, timeout=TIMEOUT_S, context=context)


if __name__ == "__main__":
    sys.exit(main(os.environ))
