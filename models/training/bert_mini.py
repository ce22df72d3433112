"""The training of bert-mini, a masked language model of docstrings: `python -m models.training.bert_mini`.

Its score is the share of masked tokens that are among its five most likely ones: 15 % of the tokens of held-out text,
chosen at random, are replaced by [MASK].
"""

from collections.abc import Iterable
from dataclasses import replace
from math import pi
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

from models import checkpoints
from models.bert import Bert
from models.config import BertConfig
from models.training import bundle, cards, command, corpus, text_training
from models.training.corpus import Corpus, Document
from models.training.optimisers import Rates
from models.training.text_tokenizers import FIRST, LAST, MASK, PADDING, UNKNOWN, train_word_pieces
from models.training.text_training import Schedule

CONFIG = BertConfig(width=256, depth=4, heads=4, mlp_width=1024, vocabulary=4096, positions=256)
SCHEDULE = Schedule(steps=950, warm_up_steps=40, long_share=0.23, decay_share=0.35, rates=Rates(others=1.5e-3))
PYTHON_REPEATS = 3  # text about Python itself is repeated
SPECIAL = {
    "pad_token": PADDING,
    "unk_token": UNKNOWN,
    "cls_token": FIRST,
    "sep_token": LAST,
    "mask_token": MASK,
}
CARD = cards.Card(
    name="bert-mini",
    summary="A small BERT that fills in masked tokens of technical English, in lower case.",
    module="bert_mini",
    data=cards.TEXT_DATA,
    use="""\
For trying Affinity, with texts such as `A list is a mutable [MASK].` The model has learned the vocabulary of
documentation, and few facts. It has 256 positions, and works best on English text in ASCII.

These weights come from a run that was extended from 850 to 950 steps after its learning rate had begun to fall. A new
run of the recipe therefore has a slightly different learning rate.
""",
)
MASKED_IN_TRAINING, MASKED_IN_SCORE = 0.3, 0.15
NEIGHBOURS = ((-1, 1, -2, 2), (-1, 1, -3, 3))  # by block: the offset of the token that each head attends to at first
PARAGRAPHS_EVERY, PARAGRAPH_LENGTH = 8, 64  # in every eighth step each row is one whole paragraph
PARAGRAPH_FILL = 0.4  # the approximate share of tokens in these rows; fixes the number of masks, for compiled steps


def initialise(model: Bert) -> None:
    """As for all text models, but positions are sinusoids, and the heads of the first blocks attend to a neighbour.

    A masked token can only be predicted from its neighbours. Learning their positions from random embeddings would take
    most of a short training.
    """
    text_training.initialise(model, CONFIG.depth, SCHEDULE.seed)
    count, size = CONFIG.width // 2, CONFIG.width // CONFIG.heads
    frequencies = pi * 10000 ** -(torch.arange(count) / count)
    angles = torch.arange(CONFIG.positions)[:, None] * frequencies  # (t, d / 2)
    with torch.no_grad():
        model.embed.positions.weight.copy_(0.05 * torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1))
        for block, offsets in zip(model.stack.blocks, NEIGHBOURS, strict=False):
            for head, offset in enumerate(offsets):
                rows = slice(head * size, (head + 1) * size)
                block.mix.q_proj.weight[rows, :size] += 0.8 * torch.eye(size)
                block.mix.k_proj.weight[rows, :size] += 0.8 * rotation(-offset * frequencies[: size // 2])


def rotation(angles: Tensor) -> Tensor:
    """The matrix that shifts a sinusoid (sin, cos) by a distance: it rotates each pair by its own angle."""
    cos, sin = torch.cos(angles), torch.sin(angles)
    pairs = torch.stack([torch.stack([cos, sin], dim=-1), torch.stack([-sin, cos], dim=-1)], dim=-2)
    return torch.block_diag(*pairs)


def encode(documents: Iterable[Document], tokenizer: Tokenizer) -> list[list[int]]:
    """The tokens of every paragraph, without `[CLS]` and `[SEP]`."""
    paragraphs = [paragraph for document in documents for text in document.texts for paragraph in text]
    return [encoding.ids for encoding in tokenizer.encode_batch(paragraphs, add_special_tokens=False)]


def as_stream(paragraphs: list[list[int]]) -> Tensor:
    """All paragraphs concatenated."""
    return torch.tensor([token for ids in paragraphs for token in ids])


def framed(rows: Tensor, tokenizer: Tokenizer) -> Tensor:
    """`[CLS]` before each row and `[SEP]` after it."""
    rows = functional.pad(rows, (1, 0), value=tokenizer.token_to_id(FIRST))
    return functional.pad(rows, (0, 1), value=tokenizer.token_to_id(LAST))


def paragraph_rows(paragraphs: list[list[int]], tokenizer: Tokenizer) -> Tensor:
    """A padded row for each paragraph that is short enough."""
    first, last, padding = (tokenizer.token_to_id(token) for token in (FIRST, LAST, PADDING))
    rows = [[first, *ids, last] for ids in paragraphs if len(ids) <= PARAGRAPH_LENGTH - 2]
    return torch.tensor([row + [padding] * (PARAGRAPH_LENGTH - len(row)) for row in rows])


def mask(rows: Tensor, count: int, tokenizer: Tokenizer, seed: int) -> tuple[Tensor, Tensor]:
    """Rows with `count` of their tokens replaced by `[MASK]`, and the flat positions of the masks."""
    special = torch.tensor([tokenizer.token_to_id(token) for token in (FIRST, LAST, PADDING)])
    random = torch.rand(rows.shape, generator=torch.Generator().manual_seed(seed))
    order = random.masked_fill(torch.isin(rows, special), 2).flatten().argsort()
    selected = order[:count].sort().values
    masked = rows.flatten().clone()
    masked[selected] = tokenizer.token_to_id(MASK)
    return masked.view_as(rows), selected


def top5_accuracy(model: nn.Module, stream: Tensor, tokenizer: Tokenizer, *, rows: int | None = None) -> float:
    """The score of `train`, over rows as long as the context of the model."""
    chosen = text_training.in_rows(stream, CONFIG.positions - 2)
    chosen = framed(chosen if rows is None else chosen[:: max(1, len(chosen) // rows)], tokenizer)
    right = total = 0
    with torch.inference_mode():
        for number, part in enumerate(chosen.split(16)):
            count = int(MASKED_IN_SCORE * part[:, 1:-1].numel())
            masked, selected = mask(part, count, tokenizer, seed=number)
            guesses = model(masked, selected=selected).topk(5).indices  # (n, 5)
            right += int((guesses == part.flatten()[selected][:, None]).any(dim=1).sum())
            total += len(selected)
    return right / total


def train(texts: Corpus, *, state_path: Path | None, compiled: bool) -> tuple[Bert, Tokenizer, float]:
    """The model, its tokenizer, and the minutes of the training."""
    tokenizer = train_word_pieces(corpus.lines(texts.training), CONFIG.vocabulary)
    repeated = [d for d in texts.training for _ in range(PYTHON_REPEATS if d.python else 1)]
    paragraphs = encode(repeated, tokenizer)
    single = paragraph_rows(paragraphs, tokenizer)
    stream, held_out = as_stream(paragraphs), as_stream(encode(texts.held_out, tokenizer))
    print(f"{len(stream):,} tokens to train on, {len(held_out):,} held out")
    model = Bert(CONFIG)
    initialise(model)

    def rows_of(step: int) -> Tensor:
        if step % PARAGRAPHS_EVERY == PARAGRAPHS_EVERY - 1:
            count = SCHEDULE.tokens_per_step // PARAGRAPH_LENGTH
            picked = torch.randint(len(single), (count,), generator=torch.Generator().manual_seed(step))
            return single[picked]
        length = SCHEDULE.length(step)
        count = SCHEDULE.tokens_per_step // length
        return framed(
            text_training.windows(stream, step=step, rows=count, length=length - 2, seed=SCHEDULE.seed), tokenizer
        )

    def loss(runner: nn.Module, step: int) -> Tensor:
        rows = rows_of(step)
        lengths = (rows != tokenizer.token_to_id(PADDING)).sum(dim=1)
        filled = PARAGRAPH_FILL if rows.shape[1] == PARAGRAPH_LENGTH else 1
        masked, selected = mask(rows, int(MASKED_IN_TRAINING * filled * rows.numel()), tokenizer, SCHEDULE.seed + step)
        return functional.cross_entropy(runner(masked, lengths, selected=selected), rows.flatten()[selected])

    def score(model: nn.Module) -> str:
        return f"{top5_accuracy(model, held_out, tokenizer, rows=48):.1%} among the first five"

    minutes = text_training.train(model, loss, score, schedule=SCHEDULE, state_path=state_path, compiled=compiled)
    return model, tokenizer, minutes


def main() -> None:
    arguments = command.text_parser(CARD).parse_args()
    torch.set_num_threads(arguments.threads)
    texts = corpus.read()
    model, tokenizer, minutes = train(texts, state_path=arguments.state, compiled=arguments.compile)
    bundle.save_text(arguments.output, model, tokenizer, special=SPECIAL, kind="BertTokenizer")
    bundle.save_held_out_texts(arguments.output, texts.held_out)
    saved = checkpoints.load(arguments.output)
    scores = {
        what: f"{top5_accuracy(saved, as_stream(encode(documents, tokenizer)), tokenizer):.1%}"
        for what, documents in (
            ("masked tokens (15 %, each replaced by `[MASK]`) among the first five guesses", texts.held_out),
            ("the same, of Python's own documentation", [d for d in texts.held_out if d.python]),
        )
    }
    print("held-out", scores)
    card = replace(CARD, scores=scores, minutes=minutes, machine=arguments.machine)
    cards.write(arguments.output, card, parameters=sum(parameter.numel() for parameter in saved.parameters()))


if __name__ == "__main__":
    main()
