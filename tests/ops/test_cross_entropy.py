"""Chunked cross-entropy = its definition, with gradients: any chunk, any logits, ignored rows and frozen parts."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourfold.ops.cross_entropy import IGNORED, cross_entropy, cross_entropy_definition
from tests.compare import assert_close
from tests.ops.conftest import Calls
from tests.ops.twins import FORMATS, assert_twins


def inputs(rows: int, width: int, vocabulary: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    hidden, head = torch.randn(rows, width).to(dtype), torch.randn(vocabulary, width).to(dtype)
    targets = torch.randint(0, vocabulary, (rows,)).masked_fill(torch.rand(rows) < 0.3, IGNORED)
    return [hidden.requires_grad_(), head.requires_grad_(), targets]


@given(
    rows=st.integers(1, 50),
    width=st.integers(1, 20),
    vocabulary=st.integers(1, 70),
    chunk=st.sampled_from([1, 7, 16, 1000]),
)
def test_chunked_is_the_definition_with_gradients(kernels: Calls, rows: int, width: int, vocabulary: int, chunk: int) -> None:
    """Gradients are sums over rows here, not means, so that none of them is small.

    In fp32 alone: at odd sizes a gradient may be the small rest of large terms that bf16 has rounded.
    """
    forms = (lambda *a: cross_entropy(*a, 1.0, chunk=chunk), lambda *a: cross_entropy_definition(*a, 1.0))
    assert_twins(*forms, inputs(rows, width, vocabulary), "hidden head")
    kernels.expect("cross_entropy")


@pytest.mark.parametrize("chunk", [1, 7, 1000])
@pytest.mark.parametrize("sizes", [(50, 16, 33), (33, 20, 70), (64, 32, 100)])
def test_chunked_is_the_definition_in_bf16(sizes: tuple[int, int, int], chunk: int, kernels: Calls) -> None:
    hidden, head, targets = inputs(*sizes, torch.bfloat16)
    hidden = (hidden.detach() * sizes[1] ** -0.5 * 2).requires_grad_()  # logits of a few units
    forms = (lambda *a: cross_entropy(*a, 1.0, chunk=chunk), lambda *a: cross_entropy_definition(*a, 1.0))
    assert_twins(*forms, [hidden, head, targets], "hidden head", dtype=torch.bfloat16)
    kernels.expect("cross_entropy")


@pytest.mark.parametrize("chunk", [1, 7, 64, 1000])
def test_tight_bounds_in_fp32(chunk: int, kernels: Calls) -> None:
    hidden, head = torch.randn(50, 16, requires_grad=True), torch.randn(33, 16, requires_grad=True)
    targets = torch.randint(0, 33, (50,)).index_fill(0, torch.tensor([0, 20, 49]), IGNORED)
    losses = []
    for function in (cross_entropy_definition, lambda *args: cross_entropy(*args, chunk=chunk)):
        loss = function(hidden, head, targets, 47.0) * 3.0
        losses.append((loss, *torch.autograd.grad(loss, (hidden, head))))
    for plain, chunked in zip(*losses, strict=True):
        torch.testing.assert_close(chunked, plain, atol=1e-6, rtol=1e-5)


def test_bf16_with_a_frozen_head(kernels: Calls) -> None:
    hidden, head = torch.randn(50, 16).bfloat16().requires_grad_(), torch.randn(33, 16).bfloat16()
    targets = torch.randint(0, 33, (50,))
    plain, chunked = (f(hidden, head, targets, 50.0) for f in (cross_entropy_definition, cross_entropy))
    torch.testing.assert_close(chunked, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(*(torch.autograd.grad(loss, hidden)[0] for loss in (plain, chunked)), atol=1e-4, rtol=0.05)


@pytest.mark.parametrize("frozen", [0, 1])
def test_either_may_be_frozen(frozen: int, kernels: Calls) -> None:
    leaves = inputs(20, 8, 30)
    leaves[frozen].requires_grad_(False)
    assert_twins(lambda *a: cross_entropy(*a, 5.0), lambda *a: cross_entropy_definition(*a, 5.0), leaves, "hidden head")


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("size", [100.0, 1e4, 1e30])
def test_logits_of_any_size_have_a_finite_loss(size: float, dtype: torch.dtype, kernels: Calls) -> None:
    """One logit far above the others, which may be the right one or not."""
    hidden, head = torch.eye(4)[:3].to(dtype).requires_grad_(), (torch.eye(4) * size).to(dtype).requires_grad_()
    targets = torch.tensor([0, 2, IGNORED])  # right, wrong, not asked
    assert_twins(
        lambda *a: cross_entropy(*a, 1.0), lambda *a: cross_entropy_definition(*a, 1.0), [hidden, head, targets], "hidden head"
    )
    (grad,) = torch.autograd.grad(cross_entropy(hidden, head, targets, 1.0), head)
    assert_close(grad[1, 1].float(), torch.tensor(1.0))
    assert_close(grad[2, 1].float(), torch.tensor(-1.0))


def test_equal_logits_cost_the_logarithm_of_their_count(kernels: Calls) -> None:
    loss = cross_entropy(torch.zeros(6, 4), torch.randn(40, 4), torch.arange(6), 6.0)
    assert_close(loss, torch.tensor(40.0).log())


def test_ignored_rows_count_for_nothing(kernels: Calls) -> None:
    hidden, head, _ = inputs(20, 8, 30)
    nothing = torch.full((20,), IGNORED)
    loss = cross_entropy(hidden, head, nothing, 1.0)
    assert loss == 0
    assert all((grad == 0).all() for grad in torch.autograd.grad(loss, (hidden, head)))
    some = nothing.index_fill(0, torch.tensor([3, 8]), 5)
    mine = torch.autograd.grad(cross_entropy(hidden, head, some, 2.0), (hidden, head))
    alone = [hidden.detach()[[3, 8]].requires_grad_(), head, torch.tensor([5, 5])]
    expected = torch.autograd.grad(cross_entropy(*alone, 2.0), alone[:2])
    assert_close(mine[0][[3, 8]], expected[0])
    assert_close(mine[1], expected[1])
    assert (mine[0][[i for i in range(20) if i not in (3, 8)]] == 0).all()


def test_what_is_not_a_number_is_seen(kernels: Calls) -> None:
    hidden, head, targets = inputs(20, 8, 30)
    with torch.no_grad():
        hidden[4, 2], targets[4] = torch.nan, 7
    loss = cross_entropy(hidden, head, targets, 1.0)
    assert loss.isnan()
    grad = torch.autograd.grad(loss, hidden)[0]
    assert grad[4].isnan().all()
    assert grad[:4].isfinite().all()


@pytest.mark.parametrize("wrong", [-1, -99, 30, 1 << 40])
def test_targets_outside_the_vocabulary_are_refused(wrong: int, kernels: Calls) -> None:
    hidden, head, targets = inputs(20, 8, 30)
    targets[11] = wrong
    for form in (cross_entropy, cross_entropy_definition):
        with pytest.raises(IndexError, match=str(wrong)):
            form(hidden, head, targets, 1.0)
    assert not kernels


def test_views_are_read_as_they_look(kernels: Calls) -> None:
    wide, head = torch.randn(20, 16, requires_grad=True), torch.randn(8, 30, requires_grad=True)
    targets = torch.randint(0, 30, (40,))
    forms = (lambda h, w, f=f: f(h[:, ::2], w.T, targets[::2], 3.0) for f in (cross_entropy, cross_entropy_definition))
    assert_twins(*forms, [wide, head], "hidden head")
