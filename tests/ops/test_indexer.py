"""Index scores and their loss = their definitions, with all gradients; what cannot be judged counts for nothing."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourfold.ops import parts
from fourfold.ops.indexer import index_kl, index_kl_definition, index_scores, index_scores_definition
from tests.compare import assert_close
from tests.ops.conftest import Calls
from tests.ops.twins import FORMATS, assert_twins

SCORES, KL = ("index_scores", "index_scores_backward"), ("index_kl",)


def inputs(sizes: tuple[int, int, int], heads: int, width: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Queries [S, C, h, D], keys [S, K, D] and head weights [S, C, h], which are fp32 always."""
    s, c, k = sizes
    queries, keys = torch.randn(s, c, heads, width).to(dtype), torch.randn(s, k, width).to(dtype)
    return [x.requires_grad_() for x in (queries, keys, torch.randn(s, c, heads))]


def seen(form) -> object:
    """Only what is visible means anything, and has a gradient."""
    return lambda q, k, w, visible: form(q, k, w, visible).masked_fill(~visible, 0.0)


def definition(queries: Tensor, keys: Tensor, weights: Tensor, visible: Tensor) -> Tensor:
    return index_scores_definition(queries, keys, weights)


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 70)),
    heads=st.integers(1, 6),
    width=st.integers(1, 20),
    dtype=st.sampled_from(FORMATS),
    part=st.sampled_from([1, 900, 1 << 20]),
    density=st.sampled_from([0.0, 0.05, 0.7, 1.0]),
)
def test_scores_are_their_definition_with_gradients(
    kernels: Calls, sizes: tuple[int, int, int], heads: int, width: int, dtype: torch.dtype, part: int, density: float
) -> None:
    leaves, visible = inputs(sizes, heads, width, dtype), torch.rand(sizes) < density
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART", part)
        patch.setattr(parts, "STEP", 8)
        assert_twins(seen(index_scores), seen(definition), [*leaves, visible], "queries keys weights")
    kernels.expect(*SCORES)


def test_scores_by_hand(kernels: Calls) -> None:
    queries, keys = torch.tensor([[[[1.0, 0.0], [0.0, -2.0]]]]), torch.tensor([[[3.0, 1.0], [-1.0, -1.0], [0.0, 0.0]]])
    weights, visible = torch.tensor([[[0.5, 10.0]]]), torch.ones(1, 1, 3, dtype=torch.bool)
    assert index_scores(queries, keys, weights, visible).tolist() == [[[1.5, 20.0, 0.0]]]


def test_without_a_mask_all_is_scored(kernels: Calls) -> None:
    leaves = inputs((2, 1, 9), 3, 8)
    assert torch.equal(index_scores(*leaves), index_scores_definition(*leaves))
    assert not kernels


def test_weights_in_another_format_fall_back(kernels: Calls) -> None:
    """The kernel reads them as fp32, whatever they are."""
    queries, keys, weights = inputs((1, 4, 9), 3, 8)
    visible = torch.ones(1, 4, 9, dtype=torch.bool)
    expected = index_scores_definition(queries, keys, weights)
    with pytest.raises(RuntimeError):
        index_scores(queries.bfloat16(), keys.bfloat16(), weights.bfloat16(), visible)
    assert_close(index_scores(queries, keys.bfloat16(), weights, visible), expected, dtype=torch.bfloat16)
    assert not kernels


@pytest.mark.parametrize("frozen", [(0,), (1,), (2,), (0, 1), (0, 1, 2)])
def test_some_may_be_frozen(frozen: tuple[int, ...], kernels: Calls) -> None:
    leaves = [leaf.requires_grad_(i not in frozen) for i, leaf in enumerate(inputs((2, 7, 9), 3, 8))]
    visible = torch.rand(2, 7, 9) < 0.7
    if len(frozen) < 3:
        assert_twins(seen(index_scores), seen(definition), [*leaves, visible], "queries keys weights")
    scores = index_scores(*leaves, visible)
    assert scores.requires_grad is (len(frozen) < 3)
    assert_close(scores[visible], index_scores_definition(*leaves)[visible])


def test_views_are_read_as_they_look(kernels: Calls) -> None:
    """A chunk of the queries, as the model gives them, and a gradient that is one number for all."""
    queries, keys, weights = inputs((2, 12, 9), 3, 8)
    visible = (torch.rand(2, 9, 5) < 0.8).mT
    sources = (queries, keys, weights)
    for form in (lambda s: s.sum(), lambda s: (s.mT * torch.arange(5.0)).sum()):
        grads = []
        for function in (index_scores, definition):
            scores = seen(function)(queries[:, 3:8], keys, weights[:, 3:8], visible)
            grads.append(torch.autograd.grad(form(scores), sources))
        for mine, expected in zip(*grads, strict=True):
            assert_close(mine, expected)


def mass_of(mask: Tensor, sparse: bool = True) -> Tensor:
    """Random probabilities over the mask, some of them exactly zero."""
    mass = torch.rand(mask.shape) * mask
    if sparse:
        mass = mass * (torch.rand(mask.shape) < 0.7)
    return mass / mass.sum(-1, keepdim=True).clamp(min=1e-9)


def judged(rows: tuple[int, ...], keys: int) -> Tensor:
    """Masks with gaps, empty rows, and one row at least that reads something."""
    first, last = torch.randint(0, keys, (*rows, 1)), torch.randint(0, keys + 3, (*rows, 1))
    place = torch.arange(keys)
    mask = (place >= first) & (place < last) & (torch.rand(*rows, keys) < 0.8)
    mask.view(-1, keys)[-1, keys // 2] = True
    return mask


@given(rows=st.tuples(st.integers(1, 3), st.integers(1, 20)), keys=st.integers(1, 70), spread=st.sampled_from([0.1, 3.0, 60.0]))
def test_loss_is_its_definition_with_gradients(kernels: Calls, rows: tuple[int, int], keys: int, spread: float) -> None:
    mask = judged(rows, keys)
    scores, mass = (spread * torch.randn(*rows, keys)).requires_grad_(), mass_of(mask)
    count = mask.any(-1).sum()  # undoes the mean, so that small gradients are compared too
    forms = (lambda *a, f=f: f(*a) * count for f in (index_kl, index_kl_definition))
    assert_twins(*forms, [scores, mass, mask], "scores")
    kernels.expect(*KL)


def test_loss_is_the_divergence_by_hand(kernels: Calls) -> None:
    mask = torch.tensor([[[True, True, False], [False, False, False], [True, True, True]]])
    scores = torch.tensor([[[0.0, math.log(3), 9.0], [5.0, 5.0, 5.0], [1.0, 1.0, 1.0]]], requires_grad=True)
    mass = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 0.0], [1.0, 0.0, 0.0]]])
    first = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    loss = index_kl(scores, mass, mask)
    assert loss.item() == pytest.approx((first + math.log(3)) / 2)
    (grad,) = torch.autograd.grad(loss, scores)
    assert_close(grad, torch.tensor([[[-0.25, 0.25, 0.0], [0.0, 0.0, 0.0], [-2 / 3, 1 / 3, 1 / 3]]]) / 2)


def test_the_loss_is_scaled_with_what_arrives(kernels: Calls) -> None:
    mask = judged((2, 9), 12)
    scores, mass = torch.randn(2, 9, 12).requires_grad_(), mass_of(mask)
    once, thrice = (torch.autograd.grad(index_kl(scores, mass, mask) * factor, scores)[0] for factor in (1.0, -3.0))
    assert_close(thrice, -3 * once)


def test_masses_may_be_views(kernels: Calls) -> None:
    mask = judged((2, 9), 12)
    scores, mass = torch.randn(2, 12, 9).requires_grad_(), mass_of(mask)
    padded = torch.cat([mass, torch.full((2, 9, 3), 7.0)], -1)[..., :12]
    wide = torch.cat([mask, torch.ones(2, 9, 1, dtype=torch.bool)], -1)[..., :12]
    assert_twins(lambda s: index_kl(s.mT, padded, wide), lambda s: index_kl_definition(s.mT, mass, mask), [scores], "scores")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("all_of_them", [True, False])
def test_a_loss_that_is_no_number_is_seen(bad: float, all_of_them: bool, kernels: Calls) -> None:
    mask = torch.ones(1, 4, 9, dtype=torch.bool).tril(2)
    scores = torch.randn(1, 4, 9)
    scores[0, 2, slice(None) if all_of_them else 1] = bad
    scores.requires_grad_()
    loss = index_kl(scores, mass_of(mask, sparse=False), mask)
    assert not loss.isfinite()
    (grad,) = torch.autograd.grad(loss, scores)
    assert not grad[0, 2].isfinite().all()
    assert grad[0, [0, 1, 3]].isfinite().all()


def test_what_the_mask_hides_may_be_anything(kernels: Calls) -> None:
    mask = judged((2, 9), 12)
    scores, mass = torch.randn(2, 9, 12), mass_of(mask)
    expected = index_kl(scores, mass, mask)
    for hidden in (torch.nan, torch.inf, -torch.inf, 1e30):
        hiding = scores.masked_fill(~mask, hidden).requires_grad_()
        loss = index_kl(hiding, mass, mask)
        assert_close(loss, expected)
        assert (torch.autograd.grad(loss, hiding)[0][~mask] == 0).all()


def test_other_formats_fall_back(kernels: Calls) -> None:
    """The kernel reads scores and mass as fp32, whatever they are."""
    mask = judged((2, 9), 12)
    scores, mass = torch.randn(2, 9, 12), mass_of(mask)
    expected = index_kl_definition(scores, mass, mask)
    for dtype in (torch.bfloat16, torch.float64):
        assert_close(index_kl(scores.to(dtype), mass.to(dtype), mask).float(), expected, dtype=torch.bfloat16)
    assert not kernels
