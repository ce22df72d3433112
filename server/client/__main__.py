"""`python -m server.client`: send a request to a running server from the command line."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from server.client import DEFAULT_SERVER, CallFailed, Client, Unreachable
from server.client.output import input_labels, note, note_truncated, print_classes, print_json, print_table, to_dict
from server.host import standard_files

START = "start one with: make serve  (or: python -m server)"
MAX_VALUES_SHOWN = 6  # of a vector; --json prints all of them


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, 0 or more")
    return int(text)


SAMPLING: dict[str, tuple[Any, str]] = {  # field of GenerateRequest → type of the argument, help text
    "max_tokens": (_count, "maximum number of generated tokens"),
    "min_tokens": (_count, "minimum number of generated tokens"),
    "temperature": (float, "softmax temperature; 0: always take the most probable token"),
    "top_k": (_count, "sample from the N most probable tokens; 0: from all tokens"),
    "top_p": (float, "sample from the most probable tokens whose probabilities add up to N"),
    "min_p": (float, "exclude tokens that are less probable than N times the most probable token"),
    "repetition_penalty": (float, "above 1: make tokens of the prompt and of the generated text less probable"),
    "frequency_penalty": (float, "make generated tokens less probable each time they occur"),
    "presence_penalty": (float, "make generated tokens less probable once they occur"),
    "seed": (_count, "seed of the sampling; the same seed gives the same text"),
    "priority": (_count, "priority in the queue: 1 is the highest, 5 the default"),
}

Command = Callable[[Client, argparse.Namespace], None]


def main(argv: Sequence[str]) -> int:
    """Run one command. Returns the exit code: 0 for success, 1 for an error (one line on stderr), 2 for wrong usage."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.run
    try:
        with Client(arguments.server, timeout_s=arguments.timeout) as client:
            command(client, arguments)
    except Unreachable as error:
        return _fail(f"{error}; {START}")
    except CallFailed as error:
        return _fail(f"{error.code.name}: {error}")
    except BrokenPipeError:  # of standard output
        raise
    except (OSError, ValueError) as error:
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def _fail(text: str) -> int:
    print(text, file=sys.stderr)
    return 1


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
    sampling = {name: value for name in SAMPLING if (value := getattr(arguments, name)) is not None}
    responses = client.generate(arguments.prompt, model=_chosen(client, arguments), stop=arguments.stop, **sampling)
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
    print_table([(name, ", ".join(value) if isinstance(value, list) else str(value)) for name, value in fields.items()])


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


# ---- the command line


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--server", default=argparse.SUPPRESS, metavar="HOST:PORT", help=f"(default: {DEFAULT_SERVER})")
    shared.add_argument("--timeout", type=float, default=60.0, metavar="S", help="timeout in seconds (default: 60)")
    shared.add_argument("--json", action="store_true", help="print the complete response as JSON")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--model", default="", metavar="NAME", help="(default: the first model, by name, of the task)")
    limited = argparse.ArgumentParser(add_help=False)
    limited.add_argument("--top-k", type=_count, metavar="N", help="number of results for each input")

    scored = argparse.ArgumentParser(add_help=False)
    functions = ("default", "softmax", "sigmoid", "none")
    scored.add_argument("--function-to-apply", default="", choices=functions, help="function from logits to scores")
    texts = argparse.ArgumentParser(add_help=False)
    texts.add_argument("texts", nargs="+")
    truncated = argparse.ArgumentParser(add_help=False)
    truncated.add_argument("--truncate", action="store_true", help="truncate texts that are too long")
    prompted = argparse.ArgumentParser(add_help=False)
    prompted.add_argument(
        "--prompt-name",
        metavar="NAME",
        help="prompt of an embedding model to put before each text, see `info`; '' for none (default: the model's)",
    )
    pairs = argparse.ArgumentParser(add_help=False)
    pairs.add_argument(
        "--pair", action="append", default=[], metavar="TEXT", help="second text of a pair; once for each text"
    )

    parser = argparse.ArgumentParser(prog="python -m server.client", description="Send a request to a running server.")
    parser.add_argument("--server", default=DEFAULT_SERVER, metavar="HOST:PORT", help=f"(default: {DEFAULT_SERVER})")
    commands = parser.add_subparsers(dest="command", required=True)

    def add(name: str, run: Command, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, parents=[shared, *parents])
        added.set_defaults(run=run)
        return added

    fill = add("fill-mask", fill_mask, "predict the token for each [MASK]", named, limited, truncated, texts)
    fill.add_argument("--target", action="append", default=[], metavar="WORD", help="rank only this word; repeatable")
    _add_sampling(add("generate", generate, "continue a text", named))
    images = add("classify-image", classify_image, "classify images", named, limited, scored)
    images.add_argument("files", nargs="+")
    add("classify-text", classify_text, "classify texts", named, limited, scored, truncated, pairs, texts)
    _add_vectors(add("embed", embed, "compute one vector for each text", named, truncated, prompted, texts))
    add("count-tokens", count_tokens, "count the tokens of texts", named, pairs, prompted, texts)
    add("info", info, "show the task, limits and labels of a model").add_argument("model", nargs="?", default="")
    add("models", models, "list the models of the server")
    add("health", health, "check whether the server is serving").add_argument("service", nargs="?", default="")
    return parser


def _add_vectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dimensions", type=_count, metavar="N", help="return only the first N values")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="scale vectors to length 1, or not (default: as the model does)",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    for name, (read, text) in SAMPLING.items():
        parser.add_argument("--" + name.replace("_", "-"), type=read, metavar="N", help=text)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="stop before this text; repeatable")


if __name__ == "__main__":
    sys.exit(standard_files.run(lambda: main(sys.argv[1:])))
