"""Variables that Kubernetes and Docker set for a service called affinity do not keep the server from starting."""

import pytest

from server.config.cli import ignored_variables, parse
from server.config.options import OPTIONS
from server.config.settings import BadSetting

KUBERNETES = {  # of a service `affinity` with two named ports, and of a service `affinity-http`
    "AFFINITY_PORT": "tcp://10.0.0.1:8001",
    "AFFINITY_PORT_8001_TCP": "tcp://10.0.0.1:8001",
    "AFFINITY_PORT_8001_TCP_ADDR": "10.0.0.1",
    "AFFINITY_PORT_8001_TCP_PORT": "8001",
    "AFFINITY_PORT_8001_TCP_PROTO": "tcp",
    "AFFINITY_PORT_53_UDP": "udp://10.0.0.1:53",
    "AFFINITY_PORT_53_UDP_ADDR": "10.0.0.1",
    "AFFINITY_SERVICE_HOST": "10.0.0.1",
    "AFFINITY_SERVICE_PORT": "8001",
    "AFFINITY_SERVICE_PORT_GRPC": "8001",
    "AFFINITY_SERVICE_PORT_METRICS": "8002",
    "AFFINITY_HTTP_PORT": "tcp://[fd00::1]:8002",
    "AFFINITY_HTTP_PORT_8002_TCP": "tcp://[fd00::1]:8002",
    "AFFINITY_HTTP_PORT_8002_TCP_ADDR": "fd00::1",
    "AFFINITY_HTTP_SERVICE_HOST": "fd00::1",
    "AFFINITY_HTTP_SERVICE_PORT": "8002",
    "AFFINITY_GATEWAY_2_PORT": "sctp://10.0.0.3:9",
    "AFFINITY_MODELS_SERVICE_HOST": "10.0.0.4",
}
DOCKER = {
    "AFFINITY_NAME": "/web/affinity",
    "AFFINITY_PORT": "tcp://172.17.0.5:8001",
    "AFFINITY_PORT_8001_TCP_START": "tcp://172.17.0.5:8001",
    "AFFINITY_PORT_8001_TCP_END": "tcp://172.17.0.5:8010",
    "AFFINITY_PORT_8001_TCP_PORT_START": "8001",
    "AFFINITY_PORT_8001_TCP_PORT_END": "8010",
    "AFFINITY_ENV_PYTHON_VERSION": "3.12",
}


@pytest.mark.parametrize("environment", [KUBERNETES, DOCKER])
def test_variables_of_services_and_links_are_ignored_and_reported(environment):
    assert parse([], environment) == parse([], {})
    injected, unknown = ignored_variables(environment)
    assert sorted(line.partition("=")[0] for line in injected) == sorted(environment)
    assert not unknown


@pytest.mark.parametrize("option", [option for group in OPTIONS.values() for option in group], ids=lambda o: o.variable)
def test_only_ports_can_have_the_value_of_a_service(option):
    environment = {option.variable: "tcp://10.0.0.1:8001"}
    if option.variable.endswith("_PORT"):
        assert parse([], environment) == parse([], {})
    elif option.placeholder not in ("DIR", "FILE", "A,B"):  # any text is the name of a directory or a model
        with pytest.raises(BadSetting, match=f"{option.variable}: found 'tcp://10.0.0.1:8001'"):
            parse([], environment)


def test_a_flag_goes_over_the_variable_of_a_service():
    assert parse(["--port", "7000"], KUBERNETES).port == 7000


@pytest.mark.parametrize(
    "value", ["", "tcp", "tcp://", "tcp://10.0.0.1", "http://10.0.0.1:80", "tcp://10.0.0.1:8001/", "10.0.0.1:80", "-1"]
)
@pytest.mark.parametrize("variable", ["AFFINITY_PORT", "AFFINITY_HTTP_PORT"])
def test_other_values_of_a_port_are_mistakes(variable, value):
    with pytest.raises(BadSetting) as error:
        parse([], {variable: value})
    assert f"{variable}: found {value!r}, expected a whole number" in str(error.value)


def test_a_variable_that_is_no_setting_is_reported_with_the_most_similar_one():
    environment = {
        "AFFINITY_HTPP_PORT": "80",
        "AFFINITY_OF_OURS": "x",
        "AFFINITY_SET": "",
        "AFFINITY_LOG_LEVEL": "info",
        "AFFINITY_TOKEN": "of a client",
    }
    injected, unknown = ignored_variables(environment | {"HOME": "/", "AFFINITYPORT": "1"})
    assert not injected
    assert unknown == ["AFFINITY_HTPP_PORT (similar: AFFINITY_HTTP_PORT)", "AFFINITY_OF_OURS"]


@pytest.mark.parametrize(
    ("text", "host"),
    [("::", "::"), ("[::1]", "::1"), ("0:0:0:0:0:0:0:1", "::1"), ("fe80::1%eth0", "fe80::1%eth0"), ("a-b.c", "a-b.c")],
)
def test_a_host_is_an_address_or_a_name(text, host):
    assert parse(["--host", text], {}).host == host
    assert parse([], {"AFFINITY_HOST": text}).host == host


@pytest.mark.parametrize("text", ["", " ", "[]", "localhost:8001", "[::1]:8001", "http://localhost", "a b", ":", "1:2"])
def test_a_host_with_a_port_or_without_a_name_is_refused(text):
    for argv, environment, source in ((["--host", text], {}, "--host"), ([], {"AFFINITY_HOST": text}, "AFFINITY_HOST")):
        with pytest.raises(BadSetting) as error:
            parse(argv, environment)
        assert f"{source}: found {text!r}, expected an address or a name" in str(error.value)
