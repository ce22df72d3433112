"""`python -m server.client`: ask a running server from the command line."""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from server.client import DEFAULT_SERVER, CallFailed, Client, Unreachable
from server.client.output import inputs, note, note_truncated, plain, print_classes, print_json, print_table

START = "start one with: make serve  (or: python -m server)"
EMBED_SHOWN = 6  # values of a vector; --json has all of them


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number, 0 or more")
    return int(text)


SAMPLING: dict[str, tuple[Any, str]] = {  # field of GenerateRequest → how its text is read, what --help says
    "max_tokens": (_count, "the most new tokens"),
    "min_tokens": (_count, "the fewest new tokens"),
    "temperature": (float, "0 always takes the likeliest token"),
    "top_k": (_count, "choose among so many of the likeliest tokens; 0: among all"),
    "top_p": (float, "choose among the likeliest tokens that together are so probable"),
    "min_p": (float, "leave out tokens less probable than this share of the likeliest"),
    "repetition_penalty": (float, "above 1: avoid tokens that were there before"),
    "frequency_penalty": (float, "avoid new tokens the more often they came"),
    "presence_penalty": (float, "avoid new tokens that came"),
    "seed": (_count, "the same seed gives the same text"),
    "priority": (_count, "who comes before others that wait: 1 is the highest, 5 the usual"),
}

Ask = Callable[[Client, argparse.Namespace], None]


def main(argv: Sequence[str]) -> int:
    """The exit code: 0 if answered, 1 if not (with one line on stderr that says why), 2 for a wrong command line."""
    arguments = _parser().parse_args(argv)
    ask: Ask = arguments.ask
    try:
        with Client(arguments.server, timeout_s=arguments.timeout) as client:
            ask(client, arguments)
    except Unreachable as error:
        return _fail(f"{error}; {START}")
    except CallFailed as error:
        return _fail(f"{error.code.name}: {error}")
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
            print_table([(f"{each.score:.3f}", each.token_str, each.sequence) for each in mask.candidates])


def generate(client: Client, arguments: argparse.Namespace) -> None:
    sampling = {name: value for name in SAMPLING if (value := getattr(arguments, name)) is not None}
    pieces = client.generate(arguments.prompt, model=_chosen(client, arguments), stop=arguments.stop, **sampling)
    if arguments.json:
        for piece in pieces:
            print(json.dumps(plain(piece), ensure_ascii=False), flush=True)
        return
    echo = arguments.prompt  # with the first piece: a request that is refused prints nothing
    for piece in pieces:
        print(echo + piece.text, end="", flush=True)
        echo = ""
        if piece.finish_reason:
            print(flush=True)
            usage = piece.usage
            note(
                f"{piece.finish_reason} after {usage.completion_tokens} tokens in {usage.inference_seconds:.2f} s; "
                f"seed {piece.seed}"
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
    print_classes(arguments, inputs(arguments), results)


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
        shown = " ".join(f"{value:+.4f}" for value in vector[:EMBED_SHOWN])
        print(f"{text}\n  {len(vector)} values: {shown}{' …' if len(vector) > EMBED_SHOWN else ''}")


# ---- what can be known beforehand


def count_tokens(client: Client, arguments: argparse.Namespace) -> None:
    answer = client.count_tokens(
        arguments.texts, text_pairs=arguments.pair, prompt_name=arguments.prompt_name, model=arguments.model
    )
    if arguments.json:
        print(json.dumps(plain(answer), ensure_ascii=False))
        return
    print_table(list(zip(map(str, answer.tokens), inputs(arguments), strict=True)))
    note(f"{answer.model} takes at most {answer.max_tokens}")


def info(client: Client, arguments: argparse.Namespace) -> None:
    answer = plain(client.info(arguments.model))
    if arguments.json:
        print(json.dumps(answer, ensure_ascii=False))
        return
    print_table([(name, ", ".join(value) if isinstance(value, list) else str(value)) for name, value in answer.items()])


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
    """The model to ask. Where nobody named one and several could answer, say which one does."""
    if arguments.model:
        return str(arguments.model)
    first, *others = client.candidates(arguments.command) or [""]
    if others:
        note(f"{first} answers; --model chooses another: {', '.join(others)}")
    return first


# ---- the command line


def _parser() -> argparse.ArgumentParser:
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--server", default=argparse.SUPPRESS, metavar="HOST:PORT", help=f"({DEFAULT_SERVER})")
    shared.add_argument("--timeout", type=float, default=60.0, metavar="S", help="how long to wait, in seconds (60)")
    shared.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    named = argparse.ArgumentParser(add_help=False)
    named.add_argument("--model", default="", metavar="NAME", help="the first, by name, that does the task if left out")
    few = argparse.ArgumentParser(add_help=False)
    few.add_argument("--top-k", type=_count, metavar="N", help="how many to tell")

    scored = argparse.ArgumentParser(add_help=False)
    functions = ("default", "softmax", "sigmoid", "none")
    scored.add_argument("--function-to-apply", default="", choices=functions, help="what makes scores of logits")
    texts = argparse.ArgumentParser(add_help=False)
    texts.add_argument("texts", nargs="+")
    cut = argparse.ArgumentParser(add_help=False)
    cut.add_argument("--truncate", action="store_true", help="cut off what is too long, on the right")
    prompted = argparse.ArgumentParser(add_help=False)
    prompted.add_argument(
        "--prompt-name",
        metavar="NAME",
        help="an embedder's prompt to put before each text (info lists them); '' for none; its default if left out",
    )
    pairs = argparse.ArgumentParser(add_help=False)
    pairs.add_argument(
        "--pair", action="append", default=[], metavar="TEXT", help="the second text of a pair; one for each text"
    )

    parser = argparse.ArgumentParser(prog="python -m server.client", description="Ask a running server.")
    parser.add_argument("--server", default=DEFAULT_SERVER, metavar="HOST:PORT", help=f"({DEFAULT_SERVER})")
    commands = parser.add_subparsers(dest="command", required=True)

    def command(name: str, ask: Ask, help: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=help, description=help, parents=[shared, *parents])
        added.set_defaults(ask=ask)
        return added

    fill = command("fill-mask", fill_mask, "the likeliest words for each [MASK]", named, few, cut, texts)
    fill.add_argument("--target", action="append", default=[], metavar="WORD", help="only this word; can be repeated")
    _add_sampling(command("generate", generate, "continue a text", named))
    images = command("classify-image", classify_image, "what images show", named, few, scored)
    images.add_argument("files", nargs="+")
    command("classify-text", classify_text, "which class texts belong to", named, few, scored, cut, pairs, texts)
    _add_vectors(command("embed", embed, "one vector for each text", named, cut, prompted, texts))
    command("count-tokens", count_tokens, "how many tokens texts are for a model", named, pairs, prompted, texts)
    command("info", info, "what a model does and takes").add_argument("model", nargs="?", default="")
    command("models", models, "what the server has")
    command("health", health, "whether the server answers").add_argument("service", nargs="?", default="")
    return parser


def _add_vectors(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dimensions", type=_count, metavar="N", help="only the first so many values")
    parser.add_argument(
        "--normalize",
        action=argparse.BooleanOptionalAction,
        help="vectors of length 1, or as they are; the model's own way if left out",
    )


def _add_sampling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    for name, (read, text) in SAMPLING.items():
        parser.add_argument("--" + name.replace("_", "-"), type=read, metavar="N", help=text)
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end before it; can be repeated")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
