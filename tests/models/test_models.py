"""What each model may and may not look at, and what comes out of it."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from models import AttentionOnly, Bert, Gpt, Mixer, Vit
from models.config import (
    BERT_HEADS,
    BERT_PRESETS,
    GPT_PRESETS,
    MIXER_PRESETS,
    VIT_PRESETS,
    DenseLayer,
    GptConfig,
    NormaliseLayer,
)
from models.heads import POOLINGS, Pooling

Randomised = Callable[[nn.Module], nn.Module]
TINY_BERT, TINY_GPT = BERT_PRESETS["tiny"], GPT_PRESETS["tiny"]


def words(*shape: int) -> Tensor:
    return torch.randint(0, 512, shape)


@pytest.mark.parametrize("kind", [Gpt, AttentionOnly])
def test_changing_a_token_changes_no_gpt_output_before_it(kind: type[nn.Module], randomised: Randomised) -> None:
    model, text, t = randomised(kind(TINY_GPT)), words(2, 12), 7
    changed = text.clone()
    changed[:, t] = (text[:, t] + 1) % 512
    before, after = model(text), model(changed)
    assert torch.equal(after[:, :t], before[:, :t])
    assert (after[:, t:] != before[:, t:]).any(dim=-1).all()  # and each one from there on


@pytest.mark.parametrize("head", BERT_HEADS)
def test_padding_does_not_change_bert_results_of_real_tokens(head: str, randomised: Randomised) -> None:
    model = randomised(Bert(replace(TINY_BERT, head=head)))
    text, lengths = words(2, 12), torch.tensor([9, 5])

    def answers(input_ids: Tensor) -> list[Tensor]:
        rows = model(input_ids, lengths)
        return [row[:length] for row, length in zip(rows, lengths, strict=True)] if head == "masked-language" else rows

    other_content = torch.where(torch.arange(12) < lengths[:, None], text, words(2, 12))
    more_of_it = torch.cat([text, words(2, 7)], dim=1)
    no_more_than_needed = text[:, :9]
    for padded in (other_content, more_of_it, no_more_than_needed):
        torch.testing.assert_close(answers(padded), answers(text))


def test_a_text_gets_the_same_answer_alone_and_in_a_batch(randomised: Randomised) -> None:
    model, text, lengths = randomised(Bert(TINY_BERT)), words(3, 12), torch.tensor([9, 5, 12])
    together = model(text, lengths)
    for row, length in enumerate(lengths):
        torch.testing.assert_close(together[row, :length], model(text[row : row + 1, :length])[0])


def test_bert_attends_in_both_directions(randomised: Randomised) -> None:
    model, text = randomised(Bert(TINY_BERT)), words(1, 6)
    changed = text.clone()
    changed[0, 3] = (text[0, 3] + 1) % 512
    assert (model(changed) != model(text)).any(dim=-1).all()


def test_berts_default_segment_is_the_first(randomised: Randomised) -> None:
    model, text = randomised(Bert(TINY_BERT)), words(1, 6)
    assert torch.equal(model(text), model(text, token_type_ids=torch.zeros_like(text)))
    assert not torch.equal(model(text), model(text, token_type_ids=torch.ones_like(text)))


@pytest.mark.parametrize(("kind", "config"), [(Bert, TINY_BERT), (Gpt, TINY_GPT)])
def test_language_heads_answer_at_the_selected_positions(
    kind: type[nn.Module], config: GptConfig, randomised: Randomised
) -> None:
    model, text = randomised(kind(config)), words(2, 6)
    row_0_column_4, row_1_column_1 = 4, 6 + 1
    some = model(text, selected=torch.tensor([row_1_column_1, row_0_column_4]))
    torch.testing.assert_close(some, model(text)[[1, 0], [1, 4]])


def test_gpt_uses_the_given_positions(randomised: Randomised) -> None:
    model, text = randomised(Gpt(TINY_GPT)), words(1, 6)
    assert torch.equal(model(text), model(text, torch.arange(6)[None]))
    assert not torch.equal(model(text), model(text, torch.arange(1, 7)[None]))


@pytest.mark.parametrize("pooling", POOLINGS)
def test_each_pooling_uses_only_the_real_tokens(pooling: str) -> None:
    x, lengths, positions = torch.randn(3, 7, 64), torch.tensor([7, 4, 1]), torch.arange(7)[None]
    found = Pooling((pooling, "max"))(x, lengths, positions)
    assert found.shape == (3, 128)
    for row, vector, length in zip(x, found, lengths.tolist(), strict=True):
        (alone,) = Pooling((pooling, "max"))(row[None, :length], torch.tensor([length]), torch.arange(length)[None])
        torch.testing.assert_close(vector, alone)


def test_the_weights_of_a_long_text_fit_fp16() -> None:
    x, lengths, positions = torch.randn(1, 512, 8), torch.tensor([512]), torch.arange(512)[None]
    for pooling in POOLINGS:
        in_fp16 = Pooling((pooling,))(x.half(), lengths, positions)
        torch.testing.assert_close(in_fp16.float(), Pooling((pooling,))(x, lengths, positions), atol=2e-3, rtol=5e-3)


@pytest.mark.parametrize("head", ["pooling", "pooler"])
def test_normalised_embeddings_have_length_one_and_the_same_direction(head: str, randomised: Randomised) -> None:
    model = randomised(Bert(replace(TINY_BERT, head=head)))
    normalised = Bert(replace(TINY_BERT, head=head, vector_layers=(NormaliseLayer(),))).eval()
    normalised.load_state_dict(model.state_dict())
    text, lengths = words(2, 8), torch.tensor([8, 3])
    plain, embedding = model(text, lengths), normalised(text, lengths)
    torch.testing.assert_close(embedding.norm(dim=-1), torch.ones(2))
    torch.testing.assert_close(embedding * plain.norm(dim=-1, keepdim=True), plain)


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (Bert(TINY_BERT), (2, 6, 512)),
        (Bert(replace(TINY_BERT, head="classifier", classes=3)), (2, 3)),
        (Bert(replace(TINY_BERT, head="pooling", vector_layers=(DenseLayer(width=9),))), (2, 9)),
        (Gpt(TINY_GPT), (2, 6, 512)),
        (AttentionOnly(TINY_GPT), (2, 6, 512)),
    ],
)
def test_tiny_language_models_run(model: nn.Module, shape: tuple[int, ...]) -> None:
    assert model(words(2, 6)).shape == shape


@pytest.mark.parametrize("model", [Vit(VIT_PRESETS["tiny"]), Mixer(MIXER_PRESETS["tiny"])])
def test_tiny_vision_models_run(model: nn.Module) -> None:
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("model", [Vit(VIT_PRESETS["tiny"]), Mixer(MIXER_PRESETS["tiny"])])
@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (1, 3, 16, 64), (3, 1, 32, 32), (1, 3, 40, 40)])
def test_an_image_of_another_size_is_refused(model: nn.Module, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"pixel_values is \(.*\): expected a batch of \(3, 32, 32\)"):
        model(torch.randn(shape))


def test_the_mixer_refuses_a_mask() -> None:
    mixing = Mixer(MIXER_PRESETS["tiny"]).stack.blocks[0].mix
    with pytest.raises(ValueError, match="found a mask, expected none"):
        mixing(torch.randn(1, 16, 64), mask=torch.zeros(16))
