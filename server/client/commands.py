"""The commands of `python -m server.client`: each sends a request and prints the result."""

import argparse
import json
from pathlib import Path

from server.client import Client
from server.client.output import (
    flat,
    input_labels,
    note,
    note_truncated,
    print_classes,
    print_json,
    print_table,
    to_dict,
)
from server.client.sampling import sampling_of

MAX_VALUES_SHOWN = 6  # of a vector; --json prints all of them

# ---- the tasks


def fill_mask(client: Client, arguments: argparse.Namespace) -> None:
    results = client.fill_mask(
        arguments.texts,
        model=_chosen(client, arguments),
        top_k=arguments.top_k,
        targets=arguments.target,
        truncate=arguments.truncate,
    )
    note_truncated(arguments.texts, results)
    if arguments.json:
        return print_json(results)
    for text, result in zip(arguments.texts, results, strict=True):
        for mask in result.masks:
            print(text if len(result.masks) == 1 else f"{text}  (token {mask.position})")
            print_table([(f"{found.score:.3f}", found.token_str, found.sequence) for found in mask.candidates])


def generate(client: Client, arguments: argparse.Namespace) -> None:
    model, sampling = _chosen(client, arguments), sampling_of(arguments)
    responses = client.generate(arguments.prompt, model=model, stop=arguments.stop, **sampling)
    if arguments.json:
        for response in responses:
            print(json.dumps(to_dict(response), ensure_ascii=False), flush=True)
        return
    echo = arguments.prompt  # printed with the first response, so that a refused request prints nothing
    for response in responses:
        print(echo + response.text, end="", flush=True)
        echo = ""
        if response.finish_reason:
            print(flush=True)
            usage = response.usage
            note(
                f"{response.finish_reason} after {usage.completion_tokens} tokens in {usage.inference_seconds:.2f} s; "
                f"seed {response.seed}"
            )


def classify_image(client: Client, arguments: argparse.Namespace) -> None:
    images = [Path(file).read_bytes() for file in arguments.files]
    model, function = _chosen(client, arguments), arguments.function_to_apply
    results = client.classify_image(images, model=model, top_k=arguments.top_k, function_to_apply=function)
    print_classes(arguments, arguments.files, results)


def classify_text(client: Client, arguments: argparse.Namespace) -> None:
    results = client.classify_text(
        arguments.texts,
        text_pairs=arguments.pair,
        model=_chosen(client, arguments),
        top_k=arguments.top_k,
        function_to_apply=arguments.function_to_apply,
        truncate=arguments.truncate,
    )
    note_truncated(arguments.texts, results)
    print_classes(arguments, input_labels(arguments), results)


def embed(client: Client, arguments: argparse.Namespace) -> None:
    vectors = client.embed(
        arguments.texts,
        model=_chosen(client, arguments),
        normalize=arguments.normalize,
        dimensions=arguments.dimensions,
        prompt_name=arguments.prompt_name,
        truncate=arguments.truncate,
    )
    if arguments.json:
        print(json.dumps(vectors))
        return
    for text, vector in zip(arguments.texts, vectors, strict=True):
        shown = " ".join(f"{value:+.4f}" for value in vector[:MAX_VALUES_SHOWN])
        print(f"{text}\n  {len(vector)} values: {shown}{' …' if len(vector) > MAX_VALUES_SHOWN else ''}")


# ---- information about models


def count_tokens(client: Client, arguments: argparse.Namespace) -> None:
    response = client.count_tokens(
        arguments.texts, text_pairs=arguments.pair, prompt_name=arguments.prompt_name, model=arguments.model
    )
    if arguments.json:
        print(json.dumps(to_dict(response), ensure_ascii=False))
        return
    print_table(list(zip(map(str, response.tokens), input_labels(arguments), strict=True)))
    note(f"{response.model} accepts at most {response.max_tokens} tokens")


def info(client: Client, arguments: argparse.Namespace) -> None:
    fields = to_dict(client.info(arguments.model))
    if arguments.json:
        print(json.dumps(fields, ensure_ascii=False))
        return
    print_table([(name, ", ".join(value) if isinstance(value, list) else str(value)) for name, value in flat(fields)])


# ---- the server


def models(client: Client, arguments: argparse.Namespace) -> None:
    found = client.models()
    if arguments.json:
        print(json.dumps([vars(model) for model in found]))
        return
    head = ("model", "version", "state", "task", "provider", "precision", "")
    print_table([head, *((m.name, m.version, m.state, m.task, m.provider, m.precision, m.reason) for m in found)])


def health(client: Client, arguments: argparse.Namespace) -> None:
    status = client.health(arguments.service)
    if status != "SERVING":
        raise ValueError(status)
    print(json.dumps({"status": status}) if arguments.json else status)


def _chosen(client: Client, arguments: argparse.Namespace) -> str:
    """The model for the request. Prints a note if --model is missing and several models serve the task."""
    if arguments.model:
        return str(arguments.model)
    first, *others = client.candidates(arguments.command) or [""]
    if others:
        note(f"using {first}; choose another with --model: {', '.join(others)}")
    return first
