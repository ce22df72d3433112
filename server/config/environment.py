"""Environment variables with the prefix AFFINITY_ that are not settings. Pure: reads a mapping.

For a service called `affinity`, Kubernetes sets AFFINITY_PORT=tcp://10.0.0.1:8001, AFFINITY_SERVICE_HOST, … in the
containers of its namespace (https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables).
Docker's links set the same variables, and AFFINITY_NAME and AFFINITY_ENV_…. The names of other services can begin
with AFFINITY_, too: AFFINITY_HTTP_PORT=tcp://… belongs to `affinity-http`.
"""

import re
from collections.abc import Collection, Mapping
from difflib import get_close_matches

PREFIX = "AFFINITY_"
PROTOCOL = "(TCP|UDP|SCTP)"
ADDRESS = re.compile(rf"{PROTOCOL}://(\[[0-9a-f:.]+\]|[\w.-]+):\d{{1,5}}", re.ASCII | re.IGNORECASE)
# The names that services and links have in addition to SERVICE_PORT=ADDRESS. The name of the service can be longer.
INJECTED_NAMES = re.compile(
    rf"AFFINITY(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_{PROTOCOL}(_(PROTO|PORT|ADDR|PORT_START|PORT_END))?"
    rf"|PORT_\d+_{PROTOCOL}_(START|END)|NAME|ENV_\w+)",
    re.ASCII,
)


def is_injected(variable: str, value: str) -> bool:
    """Whether Kubernetes or Docker set the variable to describe a service. A setting never has such a value."""
    return variable.endswith("_PORT") and ADDRESS.fullmatch(value) is not None


def ignored(environ: Mapping[str, str], known: Collection[str]) -> tuple[list[str], list[str]]:
    """The variables with the prefix that are not read: those of services and links, then all others.

    `known` are the variables of the settings. Unknown ones are returned with the most similar of these, if any.
    """
    injected, unknown = [], []
    for variable, value in sorted(environ.items()):
        if not variable.startswith(PREFIX):
            continue
        if is_injected(variable, value):
            injected.append(f"{variable}={value}")
        elif variable in known:
            continue
        elif INJECTED_NAMES.fullmatch(variable):
            injected.append(variable)
        else:
            names = [name.removeprefix(PREFIX) for name in known]
            similar = get_close_matches(variable.removeprefix(PREFIX), names, n=1)
            unknown.append(f"{variable} (similar: {PREFIX}{similar[0]})" if similar else variable)
    return injected, unknown
