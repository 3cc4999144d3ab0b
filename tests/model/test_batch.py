"""The ragged batch: positions, padding there and back, and the mask of who may see whom."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.model.inputs import Batch
from tests.builders import build, multi_head, random_tokens


@given(st.lists(st.integers(0, 9), min_size=1, max_size=5).filter(any))
def test_padding_there_and_back(lengths: list[int]) -> None:
    batch = Batch.ragged([torch.arange(n) + 1 for n in lengths])
    values = torch.randn(sum(lengths), 2, 3)
    padded = batch.pad(values)
    assert padded.shape == (len(lengths), max(lengths), 2, 3)
    assert torch.equal(batch.unpad(padded), values)
    for row, part, length in zip(padded, values.split(lengths), lengths, strict=True):
        assert torch.equal(row[:length], part)
        assert (row[length:] == 0).all()


def test_gradients_pass_through_padding() -> None:
    batch = Batch.ragged([torch.arange(2), torch.arange(4)])
    x = torch.randn(6, 3, requires_grad=True)
    (batch.unpad(batch.pad(x)) * 2).sum().backward()
    assert (x.grad == 2).all()


def test_positions_go_on_from_the_past() -> None:
    batch = Batch.ragged([torch.zeros(2).long(), torch.zeros(3).long()], past=[5, 0])
    assert batch.positions.tolist() == [[5, 6, 0, 1, 2]] * 3
    assert (batch.lengths, batch.sequences, batch.longest) == ((2, 3), 2, 3)
    batch = Batch.from_tokens(torch.zeros(2, 3).long(), past=[7, 1])
    assert batch.positions.tolist() == [[7, 8, 9, 1, 2, 3]] * 3


def test_positions_restart_with_each_document() -> None:
    documents = torch.tensor([[4, 4, 9, 9, 9, 4], [1, 2, 3, 3, 3, 3]])
    batch = Batch.from_tokens(torch.zeros(2, 6).long(), documents)
    assert batch.positions[0].tolist() == [0, 1, 0, 1, 2, 0, 0, 0, 0, 1, 2, 3]


def test_thin_face_and_flat_batch_say_the_same() -> None:
    model, tokens = build(multi_head()), random_tokens(2, 7)
    with torch.no_grad():
        face, flat = model(tokens), model(Batch.from_tokens(tokens))
    assert face.logits.shape == (2, 7, model.config.vocab_size)
    assert flat.logits.shape == (14, model.config.vocab_size)
    assert face.logits.dtype == torch.float32
    assert torch.equal(face.logits.flatten(0, 1), flat.logits)


def test_visible_is_causal_and_within_a_document_and_what_exists() -> None:
    model = build(multi_head())
    cache = model.new_cache(2)
    fed = Batch.ragged([torch.arange(3), torch.arange(1)])
    model.context(fed, cache, None, "sparse")
    context = model.context(Batch.ragged([torch.arange(1), torch.arange(2)], past=[3, 1]), cache, None, "sparse")
    assert context.history.lengths.tolist() == [4, 3]
    visible = context.visible(slice(0, 3))
    assert visible[0, 0].tolist() == [True] * 4
    assert visible[1].tolist() == [[True, True, False, False], [True, True, True, False]]


@pytest.mark.parametrize("length", [1, 5])
def test_a_single_step_that_sees_all_needs_no_mask(length: int) -> None:
    model, cache = build(multi_head()), None
    context = model.context(Batch.from_tokens(random_tokens(2, length)), cache, None, "sparse")
    assert (context.visible(slice(0, length)) is None) is (length == 1)
