"""The training of gpt-mini, a language model of docstrings: `python -m models.training.gpt_mini`.

Its score is bits per character: the number of bits that the model needs to encode held-out text.
"""

from collections.abc import Iterable
from dataclasses import replace
from math import log
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models import checkpoints
from models.config import GptConfig
from models.gpt import Gpt
from models.training import bundle, cards, command, corpus, text_training
from models.training.corpus import Corpus, Document
from models.training.text_tokenizers import END_OF_TEXT, train_byte_pairs
from models.training.text_training import Schedule

CONFIG = GptConfig(width=256, depth=4, heads=4, mlp_width=1024, vocabulary=4096, positions=256)
SCHEDULE = Schedule(steps=660)
PYTHON_REPEATS = 3  # text about Python itself is repeated
SPECIAL = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT}
CARD = cards.Card(
    name="gpt-mini",
    summary="A small GPT that continues technical English.",
    module="gpt_mini",
    data=cards.TEXT_DATA,
    use="""\
For trying Affinity, with prompts such as `A list is`. The model has learned the style of documentation, not its facts:
its statements about functions are made up. It has 256 positions, and works best on English text in ASCII.
""",
)


def joined(text: tuple[str, ...]) -> str:
    return "\n\n".join(text)


def encode(documents: Iterable[Document], tokenizer: Tokenizer) -> Tensor:
    """All texts as one stream of tokens, each with an end token."""
    texts = [joined(text) for document in documents for text in document.texts]
    end = [tokenizer.token_to_id(END_OF_TEXT)]
    return torch.tensor([token for encoding in tokenizer.encode_batch(texts) for token in encoding.ids + end])


def bits_per_character(model: nn.Module, stream: Tensor, tokenizer: Tokenizer, *, rows: int | None = None) -> float:
    """The score of `train`, over rows as long as the context. The first token of a row is not predicted."""
    length = CONFIG.positions
    chosen = text_training.in_rows(stream, length)
    chosen = chosen if rows is None else chosen[:: max(1, len(chosen) // rows)]
    characters = sum(len(text) for text in tokenizer.decode_batch(chosen[:, 1:].tolist(), skip_special_tokens=True))
    with torch.inference_mode():
        nats = sum(language_loss(model, part, reduction="sum").item() for part in chosen.split(16))
    return nats / log(2) / characters


def language_loss(model: nn.Module, rows: Tensor, reduction: str = "mean") -> Tensor:
    logits = model(rows[:, :-1])  # (b, t - 1, v)
    return functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction=reduction)


def train(texts: Corpus, *, state_path: Path | None, compiled: bool) -> tuple[Gpt, Tokenizer, float]:
    """The model, its tokenizer, and the minutes of the training."""
    tokenizer = train_byte_pairs(corpus.lines(texts.training), CONFIG.vocabulary)
    repeated = [d for d in texts.training for _ in range(PYTHON_REPEATS if d.python else 1)]
    stream, held_out = encode(repeated, tokenizer), encode(texts.held_out, tokenizer)
    print(f"{len(stream):,} tokens to train on, {len(held_out):,} held out")
    model = Gpt(CONFIG)
    text_training.initialise(model, CONFIG.depth, SCHEDULE.seed)

    def loss(runner: nn.Module, step: int) -> Tensor:
        length = SCHEDULE.length(step)
        rows = SCHEDULE.tokens_per_step // length
        return language_loss(
            runner, text_training.windows(stream, step=step, rows=rows, length=length + 1, seed=SCHEDULE.seed)
        )

    def score(model: nn.Module) -> str:
        return f"{bits_per_character(model, held_out, tokenizer, rows=64):.3f} bits per character"

    minutes = text_training.train(model, loss, score, schedule=SCHEDULE, state_path=state_path, compiled=compiled)
    return model, tokenizer, minutes


def main() -> None:
    arguments = command.text_parser(CARD).parse_args()
    torch.set_num_threads(arguments.threads)
    texts = corpus.read()
    model, tokenizer, minutes = train(texts, state_path=arguments.state, compiled=arguments.compile)
    bundle.save_text(arguments.output, model, tokenizer, special=SPECIAL, kind="GPT2Tokenizer")
    bundle.save_held_out_texts(arguments.output, texts.held_out)
    saved = checkpoints.load(arguments.output)
    scores = {
        what: f"{bits_per_character(saved, encode(documents, tokenizer), tokenizer):.3f}"
        for what, documents in (
            ("bits per character", texts.held_out),
            ("the same, of Python's own documentation", [d for d in texts.held_out if d.python]),
        )
    }
    print("held-out", scores)
    card = replace(CARD, scores=scores, minutes=minutes, machine=arguments.machine)
    cards.write(arguments.output, card, parameters=sum(parameter.numel() for parameter in saved.parameters()))


if __name__ == "__main__":
    main()
