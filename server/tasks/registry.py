"""The tasks that the server knows, in one table, to which a new task is added.

server/rpc/ has an endpoint and a typed method for each of them, and server/client/ a command;
tests/server/tasks/test_registry.py checks that they agree.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

from server.errors import InvalidRequest, ModelNotFound
from server.tasks.build import BuiltTask, LoadContext, Task, build_generate, build_image, build_text
from server.tasks.classify_image import ClassifyImage
from server.tasks.classify_text import ClassifyText
from server.tasks.embed import Embed
from server.tasks.fill_mask import FillMask
from server.tasks.generate import Generate


@dataclass(frozen=True, kw_only=True)
class TaskSpec:
    """One task."""

    name: str  # in the manifest
    task_class: type[Task]
    build: Callable[[LoadContext], BuiltTask]
    takes_text: bool  # then its tokens can be counted
    example: str  # arguments of `python -m server.client`; {image} stands for the path of a file


TASKS = {
    spec.name: spec
    for spec in (
        TaskSpec(
            name="fill-mask",
            task_class=FillMask,
            build=partial(build_text, FillMask),
            takes_text=True,
            example='fill-mask "The [MASK] statement raises an exception."',
        ),
        TaskSpec(
            name="generate",
            task_class=Generate,
            build=build_generate,
            takes_text=True,
            example='generate "A list is" --max-tokens 40',
        ),
        TaskSpec(
            name="classify-image",
            task_class=ClassifyImage,
            build=build_image,
            takes_text=False,
            example="classify-image {image}",
        ),
        TaskSpec(
            name="classify-text",
            task_class=ClassifyText,
            build=partial(build_text, ClassifyText),
            takes_text=True,
            example='classify-text "A text to classify."',
        ),
        TaskSpec(
            name="embed",
            task_class=Embed,
            build=partial(build_text, Embed),
            takes_text=True,
            example='embed "A text to embed."',
        ),
    )
}
TEXT_TASKS = tuple(spec.task_class for spec in TASKS.values() if spec.takes_text)


def names_of(*task_classes: type[object]) -> list[str]:
    """The names of tasks by their classes."""
    return [spec.name for spec in TASKS.values() if spec.task_class in task_classes]


def only_model(able: Iterable[str], tasks: Iterable[str]) -> str:
    """The model for a request that names none: the only one of those whose tasks are among these.

    Raises ModelNotFound if there is none, and InvalidRequest if there are several.
    """
    models, wanted = sorted(able), " or ".join(tasks)
    if not models:
        raise ModelNotFound(f"model: no served model has the task {wanted}")
    if len(models) > 1:
        raise InvalidRequest("model", "nothing", f"one of {', '.join(models)}: several models have the task {wanted}")
    return models[0]
