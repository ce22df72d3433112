"""A client of the Open Inference Protocol for the tests of this folder."""

import pytest
import tritonclient.grpc as triton


@pytest.fixture(scope="module")
def client(server):
    with triton.InferenceServerClient(server.target) as client:
        yield client
