"""Reads settings from flags, environment variables, and `--set` for one model: those of server/config/options.py."""

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Any, NoReturn

from server.config import environment
from server.config.options import MODEL_KEYS, OPTIONS, names
from server.config.settings import BadSetting, ModelSettings, Settings, version

CLIENT_TOKEN = "AFFINITY_TOKEN"  # a variable of server.client, which may be set for both


def parse(argv: Sequence[str], environ: Mapping[str, str]) -> Settings:
    """Read the settings: flags, then environment variables, then defaults. Raises BadSetting.

    Exits only for --help and --version.
    """
    arguments = vars(_parser().parse_args(argv))
    values: dict[str, Any] = {}
    for option in (option for group in OPTIONS.values() for option in group):
        variable = environ.get(option.variable)
        if (text := arguments[option.name]) is not None:
            values[option.name] = _read(option.flag, option.read, text)
        elif variable is not None and not environment.is_injected(option.variable, variable):
            values[option.name] = _read(option.variable, option.read, variable)
    values["overrides"] = _overrides([("AFFINITY_SET", text) for text in names(environ.get("AFFINITY_SET", ""))])
    for model, keys in _overrides([("--set", text) for text in arguments["set"]]).items():
        values["overrides"][model] = {**values["overrides"].get(model, {}), **keys}
    return Settings(**values)


def wants_json(argv: Sequence[str], environ: Mapping[str, str]) -> bool:
    """Whether the log is to be JSON. Reads nothing else, and so works if other settings are invalid."""
    formats = [environ.get("AFFINITY_LOG_FORMAT"), *(flag[13:] for flag in argv if flag.startswith("--log-format="))]
    formats += [value for flag, value in zip(argv, argv[1:], strict=False) if flag == "--log-format"]
    return [chosen for chosen in formats if chosen][-1:] == ["json"]


def ignored_variables(environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Variables that look like settings and are ignored: those of services and links, then all others."""
    known = {option.variable for options in OPTIONS.values() for option in options} | {"AFFINITY_SET", CLIENT_TOKEN}
    return environment.ignored(environ, known)


def _read(source: str, read: Callable[[str], Any], text: str) -> Any:
    try:
        return read(text)
    except BadSetting as error:
        raise BadSetting(f"{source}: {error}") from error


def _overrides(settings: Sequence[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Parse pairs of source and `MODEL.KEY=VALUE` → model → key → value."""
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
    """A default as a user would type it."""
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:g}" if isinstance(value, float) else str(value)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BadSetting(message)


def _parser() -> argparse.ArgumentParser:
    defaults = {known.name: known.default for known in fields(Settings)}
    model_defaults = {known.name: known.default for known in fields(ModelSettings)}
    keys = "\n".join(f"  {key:20} {text} ({_plain(model_defaults[key])})" for key, (_, text) in MODEL_KEYS.items())
    parser = _Parser(
        prog="python -m server",
        description="Serve exported models over gRPC. Ctrl-C lets requests in flight finish, then exits.",
        epilog=f"keys of --set, with defaults:\n{keys}\n\n"
        "Each flag can also be set by the environment variable in brackets; flags take precedence.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"affinity {version()}")
    for title, options in OPTIONS.items():
        group = parser.add_argument_group(title)
        for option in options:
            default = defaults[option.name]
            shown = ",".join(map(str, default)) if isinstance(default, tuple) else str(default)
            shown = f" ({shown})" if default is not None and shown else ""
            group.add_argument(
                option.flag, metavar=option.placeholder, help=f"{option.help}{shown} [{option.variable}]"
            )
        if title == "models":
            group.add_argument(
                "--set",
                metavar="MODEL.KEY=VALUE",
                action="append",
                default=[],
                help="set an option of one model, or of all models with the name *; repeatable "
                "[AFFINITY_SET, separated by commas]",
            )
    return parser
