"""Where settings are read: flags, environment variables, and `--set` for one model.

One table each says all there is to know about a setting: `OPTIONS` for the server, `MODEL_KEYS` for one model.
"""

import argparse
import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from server.config.settings import LOG_FORMATS, LOG_LEVELS, PROVIDERS, BadSetting, ModelSettings, Settings, version
from server.config.version_policy import Versions

SWITCH = {"on": True, "off": False}


def _whole(text: str) -> int:
    if not text.strip().isdecimal():
        raise BadSetting(f"found {text!r}, expected a whole number, 0 or more")
    return int(text)


def _whole_numbers(text: str) -> tuple[int, ...]:
    return tuple(map(_whole, text.split(",")))


def _number(text: str) -> float:
    with contextlib.suppress(ValueError):
        if math.isfinite(number := float(text)):
            return number
    raise BadSetting(f"found {text!r}, expected a number")


def _switch(text: str) -> bool:
    if text not in SWITCH:
        raise BadSetting(f"found {text!r}, expected one of {', '.join(SWITCH)}")
    return SWITCH[text]


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


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
    """One setting of the server: how its text is read, and what --help says."""

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
        Option("artifacts", Path, "DIR", "where the exported models are"),
        Option("models", _names, "A,B", "which of them to serve, separated by commas; all of them if left out"),
    ),
    "where they run": (
        Option(
            "provider",
            _one_of(*PROVIDERS),
            "|".join(PROVIDERS),
            "what computes; a provider named is required, only auto falls back, and says so",
        ),
        Option("device", _whole_numbers, "N,M", "which GPU, or GPUs: then every model runs on each of them"),
        Option("gpu_memory_mb", _whole, "MB", "how much of its memory each session may take; 0: no limit"),
        Option("threads", _whole, "N", "threads that compute; 0: as many as this process may use of the machine"),
    ),
    "network": (
        Option("host", str, "ADDRESS", "the address to listen on"),
        Option("port", _whole, "PORT", "for gRPC; 0: any that is free"),
        Option("http_port", _whole, "PORT", "for metrics and health; 0: any that is free"),
        Option("max_message_mb", _whole, "MB", "the largest request"),
        Option(
            "drain_seconds", _number, "S", "how long requests under way may take to finish when the server is stopped"
        ),
    ),
    "logs": (
        Option("log_level", _one_of(*LOG_LEVELS), "|".join(LOG_LEVELS), "how much to log"),
        Option("log_format", _one_of(*LOG_FORMATS), "|".join(LOG_FORMATS), "for a person or for a machine to read"),
    ),
}

MODEL_KEYS: dict[str, tuple[Callable[[str], Any], str]] = {
    "versions": (_versions, "which to serve: latest, all, latest:N, or numbers, such as 1+3"),
    "max_batch_size": (_whole, "inputs that run together"),
    "max_batch_tokens": (_whole, "tokens that run together, padding included; 0: what suits the provider"),
    "max_batch_padding": (_number, "the share of padding up to which inputs of different lengths run together"),
    "max_delay_seconds": (_number, "how long an input may wait for others to run with"),
    "max_queue_requests": (_whole, "inputs that may wait; further ones are refused"),
    "max_queue_tokens": (_whole, "tokens that may wait; 0: as many as max_queue_requests inputs of full length"),
    "slots": (_whole, "texts that are generated together; 0: what suits the provider"),
    "capacity": (
        _whole,
        "tokens of prompt and continuation that a slot holds; 0: as many as the model knows positions",
    ),
    "max_prefill_tokens": (_whole, "tokens of a prompt that are read between two steps; 0: what suits the provider"),
    "prefix_cache": (_switch, "on: prompts that begin alike are read once; off: each is read whole"),
}


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Settings from the command line, over the environment, over the defaults. Ends the process if they are wrong."""
    parser = _parser()
    arguments = vars(parser.parse_args(argv))
    values: dict[str, Any] = {}
    try:
        for option in (option for group in OPTIONS.values() for option in group):
            if (text := arguments[option.name]) is not None:
                values[option.name] = _read(option.flag, option.read, text)
            elif (text := environ.get(option.variable)) is not None:
                values[option.name] = _read(option.variable, option.read, text)
        values["overrides"] = _overrides([("AFFINITY_SET", text) for text in _names(environ.get("AFFINITY_SET", ""))])
        for model, keys in _overrides([("--set", text) for text in arguments["set"]]).items():
            values["overrides"][model] = {**values["overrides"].get(model, {}), **keys}
        return Settings(**values)
    except BadSetting as error:
        parser.error(str(error))


def _read(source: str, read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except BadSetting as error:
        raise BadSetting(f"{source}: {error}") from error


def _overrides(settings: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """`MODEL.KEY=VALUE` texts with where each stood → model → key → value."""
    overrides: dict[str, dict[str, Any]] = {}
    for source, setting in settings:
        target, equals, text = setting.partition("=")
        model, dot, key = target.rpartition(".")
        if not (equals and dot and model):
            raise BadSetting(f"{source}: found {setting!r}, expected MODEL.KEY=VALUE")
        if key not in MODEL_KEYS:
            raise BadSetting(f"{source} {setting}: found key {key!r}, expected one of {', '.join(MODEL_KEYS)}")
        overrides.setdefault(model, {})[key] = _read(f"{source} {setting}", MODEL_KEYS[key][0], text)
    return overrides


def _plain(value: Any) -> str:
    """A default as it would be typed."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _parser() -> argparse.ArgumentParser:
    defaults = {known.name: known.default for known in fields(Settings)}
    model_defaults = {known.name: known.default for known in fields(ModelSettings)}
    keys = "\n".join(f"  {key:19} {text} ({_plain(model_defaults[key])})" for key, (_, text) in MODEL_KEYS.items())
    parser = argparse.ArgumentParser(
        prog="python -m server",
        description="Serve exported models over gRPC. Ctrl-C lets requests under way finish, then ends.",
        epilog=f"keys of --set, with their defaults:\n{keys}\n\n"
        "Each flag can also be set by the environment variable named beside it; a flag wins.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"affinity {version()}")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option in options:
            default = defaults[option.name]
            said = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            said = f" ({said})" if said else ""
            group.add_argument(option.flag, metavar=option.placeholder, help=f"{option.help}{said} [{option.variable}]")
        if title == "models":
            group.add_argument(
                "--set",
                metavar="MODEL.KEY=VALUE",
                action="append",
                default=[],
                help="a setting of one model, or of every model with * for its name; can be repeated "
                "[AFFINITY_SET, separated by commas]",
            )
    return parser
