"""Settings of the server and of one model: frozen dataclasses with defaults, validated when they are created.

server/config/cli.py builds them once, at start.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from server.config.version_policy import Versions

PROVIDERS = ("auto", "cuda", "openvino", "cpu")
TUNE = ("off", "auto", "force")
MODEL_CONTROL = ("none", "explicit")
AUTH_ALSO = ("reflection", "metrics")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
EVERY_MODEL = "*"
MAX_OPTION = 2**31 - 1  # of gRPC
MAX_IMAGE_PIXELS = 50_000_000  # 200 MB decoded; twice as much while the picture is rotated or converted
MAX_REDUCING_GAP = 1000
MAX_SECONDS = 1_000_000  # of a duration: 11 days, which gRPC can hold in milliseconds
MIN_PER_SECOND = 1 / MAX_SECONDS  # of a rate
MAX_THREADS = 4096


class BadSetting(ValueError):
    """An invalid setting. Names the setting, the value found and the value expected."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The settings of one model, changed with `--set`. 0 selects a default for the model and the provider."""

    versions: Versions = Versions()
    precision: str = ""
    max_batch_size: int = 32
    max_batch_tokens: int = 0
    max_batch_padding: float = 0.08
    max_delay_seconds: float = 0.0
    max_queue_requests: int = 1024
    max_queue_tokens: int = 0
    max_queue_seconds: float = 30.0
    max_request_inputs: int = 0
    max_request_tokens: int = 0
    max_image_pixels: int = MAX_IMAGE_PIXELS
    reducing_gap: float = 4.0
    max_stop_strings: int = 16
    max_stop_characters: int = 256
    max_logit_bias: int = 1024
    max_stop_token_ids: int = 1024
    slots: int = 0
    capacity: int = 0
    max_prefill_tokens: int = 0
    prefix_cache: bool = True
    stream_interval: int = 1

    def __post_init__(self) -> None:
        for name in (
            "max_batch_size",
            "max_queue_requests",
            "max_image_pixels",
            "max_stop_strings",
            "max_stop_characters",
            "max_logit_bias",
            "max_stop_token_ids",
            "stream_interval",
        ):
            _check_range(self, name, 1)
        _check_range(self, "max_image_pixels", 1, MAX_IMAGE_PIXELS)
        if not 0 <= self.max_batch_padding < 1:
            raise BadSetting(f"max_batch_padding: found {self.max_batch_padding}, expected a share from 0 to below 1")
        for name in (
            "max_batch_tokens",
            "max_queue_tokens",
            "max_request_inputs",
            "max_request_tokens",
            "slots",
            "capacity",
            "max_prefill_tokens",
        ):
            _check_range(self, name, 0)
        if not (self.reducing_gap == 0 or 1 <= self.reducing_gap <= MAX_REDUCING_GAP):
            raise BadSetting(
                f"reducing_gap: found {self.reducing_gap}, expected 0 (never), or a number from 1 to {MAX_REDUCING_GAP}"
            )
        for name in ("max_delay_seconds", "max_queue_seconds"):
            _check_range(self, name, 0, MAX_SECONDS)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The settings of the server."""

    artifacts: Path = Path("artifacts")
    models: tuple[str, ...] = ()
    poll_artifacts: float = 0.0
    model_control: str = "none"
    provider: str = "auto"
    device: tuple[int, ...] = (0,)
    threads: int = 0
    tune: str = "auto"
    cache: Path | None = None
    gpu_memory_mb: int = 0
    host: str = "127.0.0.1"
    port: int = 8001
    http_port: int = 8002
    listen: tuple[str, ...] = ()
    max_message_mb: int = 64
    max_connections: int = 10_000
    max_concurrent_streams: int = 4096  # several full queues: calls beyond these are refused, and do not wait
    max_requests_per_second: float = 0.0
    max_connection_age_seconds: float = 0.0
    max_connection_age_grace_seconds: float = 0.0
    shutdown_delay_seconds: float = 0.0
    drain_seconds: float = 30.0
    slow_client_seconds: float = 30.0
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_client_ca: Path | None = None
    auth_tokens: Path | None = None
    auth_also: tuple[str, ...] = ()
    log_level: str = "info"
    log_format: str = "text"
    overrides: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # model, or *, → key → value

    def __post_init__(self) -> None:
        for name, known in (
            ("model_control", MODEL_CONTROL),
            ("provider", PROVIDERS),
            ("tune", TUNE),
            ("log_level", LOG_LEVELS),
            ("log_format", LOG_FORMATS),
        ):
            if getattr(self, name) not in known:
                raise BadSetting(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("port", "http_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise BadSetting(f"{name}: found {getattr(self, name)}, expected 0 (any free one) to 65535")
        self._check_ranges()
        if not self.device or len(set(self.device)) < len(self.device):
            raise BadSetting(f"device: found {','.join(map(str, self.device)) or 'none'}, expected different numbers")
        self._check_security()
        for model in self.overrides:
            self.of(model)

    def _check_ranges(self) -> None:
        for name, minimum, maximum in (
            ("poll_artifacts", 0, MAX_SECONDS),
            ("threads", 0, MAX_THREADS),
            ("gpu_memory_mb", 0, MAX_OPTION),
            ("max_message_mb", 1, MAX_OPTION // 2**20),
            ("max_connections", 1, MAX_OPTION),
            ("max_concurrent_streams", 1, MAX_OPTION),
            ("max_requests_per_second", 0, MAX_OPTION),
            ("max_connection_age_seconds", 0, MAX_SECONDS),
            ("max_connection_age_grace_seconds", 0, MAX_SECONDS),
            ("shutdown_delay_seconds", 0, MAX_SECONDS),
            ("drain_seconds", 0, MAX_SECONDS),
            ("slow_client_seconds", 0, MAX_SECONDS),
        ):
            _check_range(self, name, minimum, maximum)
        if 0 < self.max_requests_per_second < MIN_PER_SECOND:
            raise BadSetting(
                f"max_requests_per_second: found {self.max_requests_per_second}, expected 0 (no limit) or at least "
                f"{MIN_PER_SECOND}"
            )

    def _check_security(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            found, missing = ("tls_cert", "tls_key") if self.tls_cert else ("tls_key", "tls_cert")
            raise BadSetting(f"{missing}: found none, expected one beside {found}")
        if self.tls_client_ca and not self.tls_cert:
            raise BadSetting("tls_cert: found none, expected one beside tls_client_ca")
        if self.auth_also and not self.auth_tokens:
            raise BadSetting("auth_tokens: found none, expected a file beside auth_also")

    def of(self, model: str) -> ModelSettings:
        """The settings of one model: its own override those of `*`, which override the defaults."""
        own = {} if model == EVERY_MODEL else self.overrides.get(model, {})
        try:
            return replace(ModelSettings(), **{**self.overrides.get(EVERY_MODEL, {}), **own})
        except BadSetting as error:
            raise BadSetting(f"{model}.{error}") from error


def _check_range(settings: ModelSettings | Settings, name: str, minimum: float, maximum: float = math.inf) -> None:
    found = getattr(settings, name)
    if found > maximum:
        raise BadSetting(f"{name}: found {found}, expected at most {maximum}")
    if not found >= minimum:  # NaN is no number that could be compared
        raise BadSetting(f"{name}: found {found}, expected at least {minimum}")


def version() -> str:
    try:
        return metadata.version("affinity")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
