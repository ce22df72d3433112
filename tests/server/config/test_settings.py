"""What a user may set, and what is said about what they may not."""

import math
from dataclasses import fields

import pytest

from server.config.cli import parse
from server.config.options import MODEL_KEYS, OPTIONS
from server.config.settings import BadSetting, ModelSettings, Settings


def test_settings_have_defaults_for_a_server_on_this_machine_alone():
    settings = parse([], {})
    assert (settings.host, settings.port, settings.http_port) == ("127.0.0.1", 8001, 8002)
    assert settings.provider == "auto"
    assert settings.model_control == "none"


def test_a_flag_wins_over_the_environment_and_the_environment_over_the_default():
    environment = {"AFFINITY_PORT": "9000", "AFFINITY_HTTP_PORT": "9001", "AFFINITY_MODELS": "a, b"}
    settings = parse(["--port", "7000"], environment)
    assert (settings.port, settings.http_port, settings.models) == (7000, 9001, ("a", "b"))


def test_settings_of_one_model_go_over_those_of_every_model():
    settings = parse(
        ["--set", "bert.max_batch_size=4", "--set", "bert.max_delay_seconds=0.01"],
        {"AFFINITY_SET": "*.max_batch_size=16,bert.slots=2,bert.max_batch_size=8"},
    )
    assert settings.of("gpt") == ModelSettings(max_batch_size=16)
    assert settings.of("bert") == ModelSettings(max_batch_size=4, max_delay_seconds=0.01, slots=2)


def test_model_names_may_have_dots():
    assert parse(["--set", "mixer_b16_224.goog_in21k.slots=3"], {}).of("mixer_b16_224.goog_in21k").slots == 3


@pytest.mark.parametrize(
    ("argv", "environment", "said"),
    [
        (["--port", "x"], {}, "--port: found 'x', expected a whole number"),
        (["--port", "70000"], {}, "port: found 70000, expected 0 (any free one) to 65535"),
        ([], {"AFFINITY_PROVIDER": "tpu"}, "AFFINITY_PROVIDER: found 'tpu', expected one of auto, cuda, openvino, cpu"),
        ([], {"AFFINITY_DRAIN_SECONDS": "soon"}, "AFFINITY_DRAIN_SECONDS: found 'soon', expected a number"),
        ([], {"AFFINITY_DRAIN_SECONDS": "nan"}, "AFFINITY_DRAIN_SECONDS: found 'nan', expected a number"),
        (["--set", "bert"], {}, "--set: found 'bert', expected MODEL.KEY=VALUE"),
        (["--set", "bert.size=4"], {}, "--set bert.size=4: found key 'size', expected one of versions, precision"),
        (
            [],
            {"AFFINITY_SET": "bert.slots=many"},
            "AFFINITY_SET bert.slots=many: found 'many', expected a whole number",
        ),
        (["--set", "bert.versions=newest"], {}, "--set bert.versions=newest: found 'newest', expected latest, all, "),
        (["--set", "bert.max_batch_size=0"], {}, "bert.max_batch_size: found 0, expected at least 1"),
        (["--set", "*.max_batch_padding=1"], {}, "*.max_batch_padding: found 1.0, expected a share from 0 to below 1"),
        (["--set", "gpt.stream_interval=0"], {}, "gpt.stream_interval: found 0, expected at least 1"),
        (["--set", "gpt.prefix_cache=yes"], {}, "gpt.prefix_cache=yes: found 'yes', expected one of on, off"),
        (["--max-connection-age-seconds", "-1"], {}, "max_connection_age_seconds: found -1.0, expected at least 0"),
        (["--shutdown-delay-seconds", "1e300"], {}, "shutdown_delay_seconds: found 1e+300, expected at most 1000000"),
        (["--drain-seconds", "1e7"], {}, "drain_seconds: found 10000000.0, expected at most 1000000"),
        (["--set", "*.max_queue_seconds=1e300"], {}, "*.max_queue_seconds: found 1e+300, expected at most 1000000"),
        (
            ["--max-requests-per-second", "1e-9"],
            {},
            "max_requests_per_second: found 1e-09, expected 0 (no limit) or at",
        ),
        (["--threads", "1000000"], {}, "threads: found 1000000, expected at most 4096"),
        (["--model-control", "poll"], {}, "--model-control: found 'poll', expected one of none, explicit"),
        (["--listen", "0.0.0.0:9"], {}, "--listen: found '0.0.0.0:9', expected unix:PATH"),
        (["--listen", "unix:"], {}, "--listen: found 'unix:', expected unix:PATH"),
        (["--listen", "unix:/"], {}, "--listen: found 'unix:/', expected unix:PATH"),
        (["--listen", "unix:."], {}, "--listen: found 'unix:.', expected unix:PATH"),
        (["--auth-also", "health"], {}, "--auth-also: found 'health', expected some of reflection, metrics"),
        (["--auth-also", "metrics"], {}, "auth_tokens: found none, expected a file beside auth_also"),
        (["--tls-cert", "a.pem"], {}, "tls_key: found none, expected one beside tls_cert"),
        (["--tls-key", "a.key"], {}, "tls_cert: found none, expected one beside tls_key"),
        (["--tls-client-ca", "ca.pem"], {}, "tls_cert: found none, expected one beside tls_client_ca"),
        (["--max-message-mb", "2048"], {}, "max_message_mb: found 2048, expected at most 2047"),
        (["--max-connections", "2147483648"], {}, "max_connections: found 2147483648, expected at most 2147483647"),
        (["--max-concurrent-streams", str(2**31)], {}, "max_concurrent_streams: found 2147483648, expected at most"),
        (["--threads", "9" * 5000], {}, "--threads: found 5000 digits, expected a whole number of at most 18"),
        (["--models"], {}, "--models: expected one argument"),
        (["--cache="], {}, "--cache: found nothing, expected a path"),
        ([], {"AFFINITY_TLS_CERT": ""}, "AFFINITY_TLS_CERT: found nothing, expected a path"),
    ],
)
def test_a_wrong_setting_ends_the_start_and_says_where_it_stands(argv, environment, said):
    with pytest.raises(BadSetting) as error:
        parse(argv, environment)
    assert said in str(error.value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, -1])
def test_every_number_has_limits(value):
    """The command line accepts only finite numbers; Python code may pass others."""
    for kind in (Settings, ModelSettings):
        for name in (field.name for field in fields(kind) if type(field.default) is float):
            with pytest.raises(BadSetting, match=f"^{name}: found {value}"):
                kind(**{name: value})


def test_help_explains_every_flag_variable_and_key(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"], {})
    text = " ".join(capsys.readouterr().out.split())
    for option in (option for group in OPTIONS.values() for option in group):
        assert option.flag in text
        assert f"[{option.variable}]" in text
    assert all(key in text for key in MODEL_KEYS)
