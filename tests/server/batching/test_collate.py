"""Items are collated to one batch, and its outputs are split by item."""

import numpy as np
import pytest

from server.batching.collate import ImageItem, TextItem, collate, split, wanted
from server.batching.shape_buckets import Shapes

TEXT_INPUTS = ("input_ids", "token_type_ids", "position_ids", "lengths", "selected")


def text(*ids, selected=(), outputs=("logits",), types=None):
    return TextItem(
        input_ids=np.array(ids),
        token_type_ids=None if types is None else np.array(types),
        selected=np.array(selected, np.int64),
        outputs=outputs,
    )


def test_texts_are_padded_on_the_right():
    feeds = collate([text(7, 8, 9, selected=[1]), text(5, selected=[0]), text(3, 4, types=[0, 1])], TEXT_INPUTS)
    assert feeds["input_ids"].tolist() == [[7, 8, 9], [5, 0, 0], [3, 4, 0]]
    assert feeds["token_type_ids"].tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert feeds["position_ids"].tolist() == [[0, 1, 2]] * 3
    assert feeds["lengths"].tolist() == [3, 1, 2]
    assert feeds["lengths"].dtype == np.int32
    assert feeds["selected"].tolist() == [1, 3]


def test_only_the_inputs_of_the_graph_are_built():
    assert list(collate([text(7)], ("input_ids", "lengths"))) == ["input_ids", "lengths"]


def test_images_are_stacked():
    items = [ImageItem(pixel_values=np.full((3, 4, 5), value, np.float32), outputs=("logits",)) for value in (1, 2)]
    (pixels,) = collate(items, ("pixel_values",)).values()
    assert pixels.shape == (2, 3, 4, 5)
    assert [image[0, 0, 0] for image in pixels] == [1, 2]


@pytest.mark.parametrize(("side", "tokens"), [(8, 1), (16, 1), (224, 196)])
def test_an_image_counts_as_many_tokens_as_it_has_patches(side, tokens):
    assert ImageItem(pixel_values=np.zeros((3, side, side), np.float32), outputs=()).tokens == tokens


def test_each_item_gets_its_own_part_of_the_outputs_that_it_needs():
    items = [
        text(1, 2, 3, selected=[0, 2], outputs=("top_ids",)),
        text(1, selected=[0], outputs=("logits", "top_ids")),
    ]
    assert wanted(items) == ("top_ids", "logits")
    outputs = {"logits": np.arange(6).reshape(3, 2), "top_ids": np.array([[10], [11], [12]])}
    first, second = split(outputs, items)
    assert {name: part.tolist() for name, part in first.items()} == {"top_ids": [[10], [11]]}
    assert {name: part.tolist() for name, part in second.items()} == {"logits": [[4, 5]], "top_ids": [[12]]}


def test_without_selected_positions_outputs_are_split_by_row():
    answers = split({"embedding": np.arange(4).reshape(2, 2)}, [text(1, outputs=("embedding",))] * 2)
    assert [answer["embedding"].tolist() for answer in answers] == [[0, 1], [2, 3]]


SHAPES = Shapes(lengths=(4, 8), batch_sizes=(1, 4), logit_counts=(1, 4))


def test_padding_rows_come_last_and_are_dropped():
    items = [text(7, 8, 9, selected=[1], outputs=("top_ids",)), text(5, selected=[0], outputs=("top_ids",))]
    feeds = collate(items, TEXT_INPUTS, SHAPES)
    assert feeds["input_ids"].tolist() == [[7, 8, 9, 0], [5, 0, 0, 0], [0] * 4, [0] * 4]
    assert feeds["lengths"].tolist() == [3, 1, 1, 1]
    assert feeds["position_ids"].tolist() == [[0, 1, 2, 3]] * 4
    assert feeds["selected"].tolist() == [1, 4, 0, 0]
    answers = split({"top_ids": np.array([[10], [11], [98], [99]])}, items)
    assert [answer["top_ids"].tolist() for answer in answers] == [[[10]], [[11]]]


def test_padding_images_are_black():
    items = [ImageItem(pixel_values=np.full((3, 4, 5), value, np.float32), outputs=("logits",)) for value in (1, 2)]
    (pixels,) = collate(items, ("pixel_values",), SHAPES).values()
    assert [image.max() for image in pixels] == [1, 2, 0, 0]
