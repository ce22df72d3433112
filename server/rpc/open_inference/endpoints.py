"""The endpoints of the Open Inference Protocol: for every model one for its task and a raw one for tensors.

An endpoint declares tensors and parameters. The servicer checks requests against them and calls its function.
"""

from protos.manifest_pb2 import Manifest
from server.rpc.open_inference.endpoint import ANY, Endpoint, Tensor
from server.rpc.open_inference.generate_endpoint import generate, stream_text
from server.rpc.open_inference.task_endpoints import classify_image, classify_text, embed, fill_mask, infer_tensors
from server.rpc.parameters.sampling import PARAMETERS as SAMPLING
from server.rpc.parameters.values import Kind

RAW = ".raw"  # NAME.raw is the raw endpoint of the model NAME

TEXT = Tensor("text", "BYTES", (ANY,))
SCORES = Tensor("score", "FP32", (ANY, ANY))
LABELS = Tensor("label", "BYTES", (ANY, ANY))
TOP_K = {"top_k": Kind.INTEGER}
SCORED = {**TOP_K, "function_to_apply": Kind.TEXT}  # softmax, sigmoid, none, default
TRUNCATE = {"truncate": Kind.BOOLEAN}

ENDPOINTS = {
    "fill-mask": Endpoint(
        inputs=(TEXT,),
        outputs=(
            Tensor("token", "BYTES", (ANY, ANY)),
            Tensor("token_id", "INT64", (ANY, ANY)),
            SCORES,
            Tensor("row", "INT64", (ANY,)),
        ),
        infer=fill_mask,
        parameters={**TOP_K, **TRUNCATE, "targets": Kind.TEXT},  # one word or a JSON list of words
    ),
    "classify-text": Endpoint(
        inputs=(TEXT, Tensor("text_pair", "BYTES", (ANY,), optional=True)),
        outputs=(LABELS, SCORES),
        infer=classify_text,
        parameters={**SCORED, **TRUNCATE},
    ),
    "classify-image": Endpoint(
        inputs=(Tensor("image", "BYTES", (ANY,)),),
        outputs=(LABELS, Tensor("class_id", "INT64", (ANY, ANY)), SCORES),
        infer=classify_image,
        parameters=SCORED,
    ),
    "embed": Endpoint(
        inputs=(TEXT,),
        outputs=(Tensor("embedding", "FP32", (ANY, ANY)),),
        infer=embed,
        parameters={
            **TRUNCATE,
            "normalize": Kind.BOOLEAN,
            "dimensions": Kind.INTEGER,
            "prompt_name": Kind.TEXT,  # the name of a prompt of the model; "" for none
        },
    ),
    "generate": Endpoint(
        inputs=(Tensor("text_input", "BYTES", (ANY,)),),
        outputs=(Tensor("text_output", "BYTES", (ANY,)), Tensor("finish_reason", "BYTES", (ANY,))),
        infer=generate,
        parameters=SAMPLING,
        stream=stream_text,
    ),
}


def endpoint_for(manifest: Manifest, *, raw: bool) -> Endpoint:
    """The endpoint of a model's task, or its raw endpoint."""
    return _raw_endpoint(manifest) if raw else ENDPOINTS[manifest.task]


def _raw_endpoint(manifest: Manifest) -> Endpoint:
    """Token ids or pixels in, the network's outputs out. The signature does not depend on the exported graph."""
    labels = tuple(manifest.labels)
    if manifest.HasField("image"):
        pixels = Tensor("pixel_values", "FP32", (ANY, 3, manifest.image.height, manifest.image.width))
        return Endpoint((pixels,), (Tensor("logits", "FP32", (ANY, len(labels)), labels=labels),), infer_tensors)
    inputs = [Tensor("input_ids", "INT64", (ANY, ANY)), Tensor("attention_mask", "INT64", (ANY, ANY), optional=True)]
    if manifest.text.segments:
        inputs.append(Tensor("token_type_ids", "INT64", (ANY, ANY), optional=True))
    outputs = {
        "classify-text": Tensor("logits", "FP32", (ANY, len(labels)), labels=labels),
        "embed": Tensor("embedding", "FP32", (ANY, manifest.embedding_width or ANY)),
    }
    vocabulary = Tensor("logits", "FP32", (ANY, ANY, manifest.text.vocabulary), labels=())
    return Endpoint(tuple(inputs), (outputs.get(manifest.task, vocabulary),), infer_tensors)
