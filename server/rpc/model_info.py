"""What can be told of a model: its task, limits and labels. One description, which both doors tell."""

import json

from google.protobuf.json_format import MessageToDict

from protos import affinity_pb2 as pb
from server.images.file import FORMATS
from server.images.limits import MAX_PIXELS
from server.repository.repository import Model
from server.tasks.fill_mask import FillMask


def describe(model: Model) -> pb.ModelInfoResponse:
    """Fields that do not apply to the model are left out."""
    manifest = model.artifact.manifest
    task, text = model.task, manifest.text
    told = pb.ModelInfoResponse(
        model=model.name,
        model_version=model.version,
        task=manifest.task,
        architecture=manifest.architecture,
        provider=model.provider,
        precision=model.precision,
        max_inputs=model.limits.requests,
        max_tokens=text.max_length,
        vocabulary=text.vocabulary,
        mask_token=task.mask_token if isinstance(task, FillMask) else "",
        max_top_k=len(manifest.labels) or (0 if manifest.task == "embed" else text.vocabulary),
        labels=manifest.labels,
        function_to_apply=manifest.function_to_apply,
        embedding_width=manifest.embedding_width,
        normalized=manifest.normalise,
        prompts=text.prompts,
        default_prompt_name=text.default_prompt_name,
    )
    if manifest.HasField("image"):
        told.image_height, told.image_width = manifest.image.height, manifest.image.width
        told.image_formats.extend(FORMATS)
        told.max_image_pixels = MAX_PIXELS
    return told


def properties(model: Model) -> dict[str, str]:
    """The same as texts, for the Open Inference Protocol; lists are JSON."""
    told = MessageToDict(describe(model), preserving_proto_field_name=True)
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in told.items()
        if name not in ("model", "model_version")  # which the messages of the protocol name themselves
    }
