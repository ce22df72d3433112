"""Settings of the server and of one model: frozen dataclasses with defaults, validated when they are created.

server/config/cli.py builds them once, at start.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

from server.config.version_policy import Versions

PROVIDERS = ("auto", "cuda", "openvino", "cpu")
MODEL_CONTROL = ("none", "explicit")
AUTH_ALSO = ("reflection", "metrics")
LOG_LEVELS = ("debug", "info", "warning", "error")
LOG_FORMATS = ("text", "json")
EVERY_MODEL = "*"
MAX_OPTION = 2**31 - 1  # of gRPC
MAX_IMAGE_PIXELS = 50_000_000  # 200 MB decoded; twice as much while the picture is rotated or converted


class BadSetting(ValueError):
    """An invalid setting. Names the setting, the value found and the value expected."""


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The settings of one model, changed with `--set`. 0 selects a default for the model and the provider."""

    versions: Versions = Versions()
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
    max_stop_strings: int = 16
    max_stop_characters: int = 256
    max_logit_bias: int = 1024
    max_stop_token_ids: int = 1024
    slots: int = 0
    capacity: int = 0
    max_prefill_tokens: int = 0
    prefix_cache: bool = True

    def __post_init__(self) -> None:
        for name, minimum in (
            ("max_batch_size", 1),
            ("max_queue_requests", 1),
            ("max_image_pixels", 1),
            ("max_stop_strings", 1),
            ("max_stop_characters", 1),
            ("max_logit_bias", 1),
            ("max_stop_token_ids", 1),
        ):
            if getattr(self, name) < minimum:
                raise BadSetting(f"{name}: found {getattr(self, name)}, expected at least {minimum}")
        if self.max_image_pixels > MAX_IMAGE_PIXELS:
            raise BadSetting(f"max_image_pixels: found {self.max_image_pixels}, expected at most {MAX_IMAGE_PIXELS}")
        if not 0 <= self.max_batch_padding < 1:
            raise BadSetting(f"max_batch_padding: found {self.max_batch_padding}, expected a share from 0 to below 1")
        for name in (
            "max_batch_tokens",
            "max_delay_seconds",
            "max_queue_tokens",
            "max_queue_seconds",
            "max_request_inputs",
            "max_request_tokens",
            "slots",
            "capacity",
            "max_prefill_tokens",
        ):
            if getattr(self, name) < 0:
                raise BadSetting(f"{name}: found {getattr(self, name)}, expected 0 or more")


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
            ("log_level", LOG_LEVELS),
            ("log_format", LOG_FORMATS),
        ):
            if getattr(self, name) not in known:
                raise BadSetting(f"{name}: found {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("port", "http_port"):
            if not 0 <= getattr(self, name) <= 65535:
                raise BadSetting(f"{name}: found {getattr(self, name)}, expected 0 (any free one) to 65535")
        for name, minimum in (
            ("poll_artifacts", 0),
            ("threads", 0),
            ("gpu_memory_mb", 0),
            ("max_message_mb", 1),
            ("max_connections", 1),
            ("max_concurrent_streams", 1),
            ("max_requests_per_second", 0),
            ("max_connection_age_seconds", 0),
            ("max_connection_age_grace_seconds", 0),
            ("shutdown_delay_seconds", 0),
            ("drain_seconds", 0),
            ("slow_client_seconds", 0),
        ):
            if getattr(self, name) < minimum:
                raise BadSetting(f"{name}: found {getattr(self, name)}, expected at least {minimum}")
        for name, maximum in (
            ("max_message_mb", MAX_OPTION // 2**20),  # gRPC takes it in bytes
            ("max_connections", MAX_OPTION),
            ("max_concurrent_streams", MAX_OPTION),
        ):
            if getattr(self, name) > maximum:
                raise BadSetting(f"{name}: found {getattr(self, name)}, expected at most {maximum}")
        if not self.device or len(set(self.device)) < len(self.device):
            raise BadSetting(f"device: found {','.join(map(str, self.device)) or 'none'}, expected different numbers")
        self._check_security()
        for model in self.overrides:
            self.of(model)

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


def version() -> str:
    try:
        return metadata.version("affinity")
    except metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return "unknown"
