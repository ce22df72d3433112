"""Every task answers the messages of other servers' clients as it answers a plain message."""

import grpc
import pytest

from tests.clients.cases import CASES
from tests.clients.messages import assert_same, messages_of_kserve, messages_of_mlserver, outputs_for, plain_message

MESSAGES = [
    *(pytest.param(name.split(",")[0], message, id=f"kserve: {name}") for name, message in messages_of_kserve()),
    *(pytest.param(name.split(",")[0], message, id=f"mlserver: {name}") for name, message in messages_of_mlserver()),
]


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture(scope="module")
def expected(channel):
    return {case: outputs_for(channel, plain_message(case)) for case in CASES}


@pytest.mark.parametrize(("case", "message"), MESSAGES)
def test_a_message_of_another_servers_client_is_answered(channel, expected, case, message):
    assert_same(outputs_for(channel, message), expected[case])
