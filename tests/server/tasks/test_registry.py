"""The registry, the endpoints, the typed service and the client know the same tasks."""

import shlex

import pytest

from protos import affinity_pb2
from server.client import Client
from server.client.arguments import parser
from server.rpc.open_inference.endpoints import ENDPOINTS
from server.tasks.registry import TASKS, TEXT_TASKS, names_of

ABOUT_MODELS = {"CountTokens", "ModelInfo"}  # methods of the typed service that are not tasks


def test_each_task_has_an_endpoint_of_the_open_inference_protocol():
    assert set(ENDPOINTS) == set(TASKS)


def test_each_task_has_a_method_of_the_typed_service_named_like_its_class():
    methods = {method.name for method in affinity_pb2.DESCRIPTOR.services_by_name["Affinity"].methods}
    assert methods - ABOUT_MODELS == {spec.task_class.__name__ for spec in TASKS.values()}


@pytest.mark.parametrize("name", TASKS)
def test_each_task_has_a_method_of_the_client_and_a_command_that_reads_its_example(name):
    function = name.replace("-", "_")
    assert callable(getattr(Client, function))
    arguments = parser().parse_args(shlex.split(TASKS[name].example.format(image="some.png")))
    assert arguments.run.__name__ == function


def test_a_class_stands_for_one_task():
    assert [names_of(spec.task_class) for spec in TASKS.values()] == [[name] for name in TASKS]
    assert names_of(*TEXT_TASKS) == ["fill-mask", "generate", "classify-text", "embed"]
