"""The description of a model (task, limits, labels), as both services return it."""

import json

from google.protobuf.json_format import MessageToDict

from protos import affinity_pb2 as pb
from protos.artifact import IMAGE_FORMATS
from server.repository.model import Model
from server.tasks.classify_image import ClassifyImage
from server.tasks.fill_mask import FillMask

MAX_UINT32 = 2**32 - 1


def describe(model: Model) -> pb.ModelInfoResponse:
    """The description of a model. Fields that do not apply to it keep their default values."""
    manifest = model.artifact.manifest
    task, text = model.task, manifest.text
    info = pb.ModelInfoResponse(
        model=model.name,
        model_version=model.version,
        task=manifest.task,
        architecture=manifest.architecture,
        provider=model.provider,
        precision=model.precision,
        max_inputs=model.limits.max_inputs,
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
        max_request_tokens=min(model.limits.max_tokens, MAX_UINT32) if text.max_length else 0,
    )
    if model.tuning is not None:
        choice = model.tuning.choice
        info.tuning.CopyFrom(
            pb.Tuning(
                source=model.tuning.source,
                speedup=choice.speedup,
                threads=choice.candidate.threads,
                session_options=dict(choice.candidate.options),
                max_batch_tokens=choice.sizes.max_batch_tokens,
                max_prefill_tokens=choice.sizes.max_prefill_tokens,
            )
        )
    if manifest.HasField("image"):
        info.image_height, info.image_width = manifest.image.height, manifest.image.width
        info.image_formats.extend(IMAGE_FORMATS)
        info.max_image_pixels = task.max_pixels if isinstance(task, ClassifyImage) else 0
    return info


def properties(model: Model) -> dict[str, str]:
    """The description as strings, for the Open Inference Protocol. Lists and numbers are JSON."""
    fields = MessageToDict(describe(model), preserving_proto_field_name=True)
    return {
        name: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        for name, value in fields.items()
        if name not in ("model", "model_version")  # the protocol's messages have fields for these
    }
