"""All settings, and how their texts are read: `OPTIONS` has those of the server, `MODEL_KEYS` those of one model."""

import contextlib
import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from server.config.settings import AUTH_ALSO, LOG_FORMATS, LOG_LEVELS, MODEL_CONTROL, PROVIDERS, TUNE, BadSetting
from server.config.version_policy import Versions

MAX_DIGITS = 18  # of a whole number: Python reads no more than some thousands
SWITCH = {"on": True, "off": False}


def _whole(text: str) -> int:
    if not text.strip().isdecimal():
        raise BadSetting(f"found {text!r}, expected a whole number, 0 or more")
    if len(text.strip()) > MAX_DIGITS:
        raise BadSetting(f"found {len(text.strip())} digits, expected a whole number of at most {MAX_DIGITS}")
    return int(text)


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(_whole, text.split(",")))


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise BadSetting(f"found {text!r}, expected a number")


def _path(text: str) -> Path:
    if not text:  # which would be the current directory
        raise BadSetting("found nothing, expected a path")
    return Path(text)


def _switch(text: str) -> bool:
    if text not in SWITCH:
        raise BadSetting(f"found {text!r}, expected one of {', '.join(SWITCH)}")
    return SWITCH[text]


def names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _some_of(*known: str) -> Callable[[str], tuple[str, ...]]:
    def read(text: str) -> tuple[str, ...]:
        if not names(text) or set(names(text)) - set(known):
            raise BadSetting(f"found {text!r}, expected some of {', '.join(known)}")
        return names(text)

    return read


def _sockets(text: str) -> tuple[str, ...]:
    if not all(name.startswith("unix:") and Path(name.removeprefix("unix:")).name for name in names(text)):
        raise BadSetting(f"found {text!r}, expected unix:PATH")
    return names(text)


def _host(text: str) -> str:
    host = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    if ":" in host:
        with contextlib.suppress(ValueError):
            return str(ipaddress.IPv6Address(host))
    elif host and not re.search(r"[\s/\[\]]", host):
        return host
    raise BadSetting(f"found {text!r}, expected an address or a name, without a port")


def _versions(text: str) -> Versions:
    try:
        return Versions.parse(text)
    except ValueError as error:
        raise BadSetting(str(error)) from error


def _one_of(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise BadSetting(f"found {text!r}, expected one of {', '.join(known)}")
        return text

    return read


@dataclass(frozen=True)
class Option:
    """One setting of the server: its parser and its help."""

    name: str
    read: Callable[[str], Any]
    placeholder: str
    help: str

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return "AFFINITY_" + self.name.upper()


OPTIONS = {
    "models": (
        Option("artifacts", _path, "DIR", "directory of the exported models"),
        Option("models", names, "A,B", "models to serve, separated by commas; default: all"),
        Option(
            "model_control",
            _one_of(*MODEL_CONTROL),
            "|".join(MODEL_CONTROL),
            "explicit: clients may load and unload models; none: they may not",
        ),
        Option(
            "poll_artifacts",
            _number,
            "S",
            "look for new and removed versions every S seconds, load and unload them; 0: never",
        ),
    ),
    "execution": (
        Option(
            "provider",
            _one_of(*PROVIDERS),
            "|".join(PROVIDERS),
            "execution provider; auto takes the best available and logs which, any other value is required",
        ),
        Option("device", _whole_numbers, "N,M", "GPU number, or several: then every model runs on each GPU"),
        Option("gpu_memory_mb", _whole, "MB", "GPU memory limit of each session; 0: no limit"),
        Option("threads", _whole, "N", "compute threads; 0: one for each CPU available to the process"),
        Option(
            "tune",
            _one_of(*TUNE),
            "|".join(TUNE),
            "auto: measure once how each model runs fastest on this CPU, and keep the choice; force: measure again; "
            "off: take the defaults",
        ),
        Option("cache", _path, "DIR", "directory for measured choices; default: beside the model"),
    ),
    "network": (
        Option(
            "host",
            _host,
            "ADDRESS",
            "the address to listen on, or a name with one or more; 0.0.0.0 or ::: all, IPv4 and IPv6",
        ),
        Option("port", _whole, "PORT", "gRPC port; 0: any free port"),
        Option("http_port", _whole, "PORT", "HTTP port for metrics and health; 0: any free port"),
        Option("listen", _sockets, "unix:PATH", "gRPC on a Unix-domain socket, too; several separated by commas"),
        Option(
            "max_connection_age_seconds",
            _number,
            "S",
            "close a connection after so long, so that clients connect to new servers, too; 0: never",
        ),
        Option(
            "max_connection_age_grace_seconds",
            _number,
            "S",
            "time for the calls of a connection that has reached its age; 0: no limit",
        ),
        Option(
            "shutdown_delay_seconds",
            _number,
            "S",
            "serve requests for so long after SIGTERM, while health checks already fail",
        ),
        Option("drain_seconds", _number, "S", "time for requests in flight to finish when the server stops"),
        Option("slow_client_seconds", _number, "S", "end a stream whose client has read nothing for so long; 0: never"),
    ),
    "limits": (
        Option("max_message_mb", _whole, "MB", "maximum size of a request"),
        Option("max_connections", _whole, "N", "maximum number of open gRPC connections; further ones are closed"),
        Option(
            "max_concurrent_streams",
            _whole,
            "N",
            "maximum number of concurrent calls on a connection; clients hold further ones back",
        ),
        Option(
            "max_requests_per_second",
            _number,
            "N",
            "maximum rate of requests with one token, or without tokens from one address; 0: no limit",
        ),
    ),
    "security": (
        Option(
            "tls_cert", _path, "FILE", "certificate chain in PEM: TLS for gRPC and HTTP; read again when it changes"
        ),
        Option("tls_key", _path, "FILE", "the key of the certificate, in PEM without a password"),
        Option("tls_client_ca", _path, "FILE", "authorities in PEM; clients need a certificate of one of them"),
        Option("auth_tokens", _path, "FILE", "tokens of clients, lines of NAME: TOKEN; read again when it changes"),
        Option(
            "auth_also", _some_of(*AUTH_ALSO), "|".join(AUTH_ALSO), "needs a token, too; several separated by commas"
        ),
    ),
    "logs": (
        Option("log_level", _one_of(*LOG_LEVELS), "|".join(LOG_LEVELS), "lowest level to log"),
        Option("log_format", _one_of(*LOG_FORMATS), "|".join(LOG_FORMATS), "format of the log"),
    ),
}

MODEL_KEYS: dict[str, tuple[Callable[[str], Any], str]] = {
    "versions": (_versions, "versions to serve: latest, all, latest:N, or numbers such as 1+3"),
    "precision": (
        str.strip,
        "precision of the graph to run, such as fp32, of an artifact with several; default: the one that --tune finds",
    ),
    "max_batch_size": (_whole, "maximum number of inputs in a batch"),
    "max_batch_tokens": (_whole, "maximum number of tokens in a batch, with padding; 0: default of the provider"),
    "max_batch_padding": (_number, "maximum share of padding in a batch of inputs of different lengths"),
    "max_delay_seconds": (_number, "maximum time that an input waits for a larger batch"),
    "max_queue_requests": (_whole, "maximum number of waiting inputs; further inputs are refused"),
    "max_queue_tokens": (_whole, "maximum number of waiting tokens; 0: max_queue_requests inputs of full length"),
    "max_queue_seconds": (_number, "maximum time that a request without a deadline waits before it is refused"),
    "max_request_inputs": (_whole, "maximum number of inputs in a request; 0: max_queue_requests"),
    "max_request_tokens": (_whole, "maximum number of tokens in a request; 0: max_queue_tokens"),
    "max_image_pixels": (
        _whole,
        "maximum number of pixels of an image; three times as many of a JPEG in one scan",
    ),
    "reducing_gap": (
        _number,
        "decode a large JPEG at the smallest scale that leaves this many times the size of the model; 0: in full",
    ),
    "max_stop_strings": (_whole, "maximum number of stop strings in a request"),
    "max_stop_characters": (_whole, "maximum length of a stop string"),
    "max_logit_bias": (_whole, "maximum number of entries in logit_bias"),
    "max_stop_token_ids": (_whole, "maximum number of entries in stop_token_ids"),
    "slots": (_whole, "sequences that are generated concurrently; 0: default of the provider"),
    "capacity": (
        _whole,
        "prompt and generated tokens that a slot holds; 0: all positions of the model",
    ),
    "max_prefill_tokens": (_whole, "prompt tokens processed between two decode steps; 0: default of the provider"),
    "prefix_cache": (
        _switch,
        "on: reuse the keys and values of common prompt prefixes; off: process every prompt in full",
    ),
    "stream_interval": (_whole, "generated tokens in a message of a stream; the first token is sent at once"),
}
