"""Sinkhorn: how doubly stochastic the result is, and fast = definition, outputs and gradients."""

import pytest
import torch
from torch import Tensor

from fourfold.ops.sinkhorn import sinkhorn, sinkhorn_definition
from tests.compare import assert_close

EPS, ITERATIONS = 1e-6, 20
# The side normalised last sums to one whatever the logits; how far the other is off depends on how far apart they lie. For n = 4
# and 20 iterations, gradient ascent over all logits of at most this size found 1.3e-6, 0.0070, 0.029, 0.061 and 0.084 as the worst.
ROW_BOUNDS = {1.0: 2e-6, 2.0: 0.01, 3.0: 0.035, 5.0: 0.08, 50.0: 0.1}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("spread", [0.1, 1.0, 3.0, 10.0, 50.0])
def test_what_flows_into_a_stream_sums_to_one(n: int, spread: float) -> None:
    mix = sinkhorn(torch.empty(2000, n, n).uniform_(-spread, spread), ITERATIONS, EPS)
    assert mix.isfinite().all()
    assert (mix >= 0).all()
    assert (mix.sum(-2) - 1).abs().max() < 2e-6


@pytest.mark.parametrize("spread", ROW_BOUNDS)
def test_what_flows_out_of_a_stream_sums_to_one_within_a_bound(spread: float) -> None:
    corners = (torch.arange(1 << 16)[:, None] >> torch.arange(16)) & 1  # every matrix of the largest and smallest logits
    corners = (2.0 * corners - 1).view(-1, 4, 4) * spread
    for logits in (corners, torch.empty(20000, 4, 4).uniform_(-spread, spread)):
        mix = sinkhorn(logits, ITERATIONS, EPS)
        assert (mix.sum(-1) - 1).abs().max() < ROW_BOUNDS[spread]


def test_more_iterations_come_nearer() -> None:
    logits = torch.empty(500, 4, 4, dtype=torch.float64).uniform_(-3, 3)
    off = [(sinkhorn(logits, iterations, 1e-12).sum(-1) - 1).abs().max().item() for iterations in (1, 5, 20, 80)]
    assert off == sorted(off, reverse=True)
    assert off[-1] < 1e-4


@pytest.mark.parametrize("n", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("iterations", [1, 2, 3, 20])
def test_fast_is_the_definition_with_gradients(n: int, iterations: int) -> None:
    logits = (2 * torch.randn(50, n, n)).requires_grad_()
    weight = torch.randn(50, n, n)
    fast, plain = sinkhorn(logits, iterations, EPS), sinkhorn_definition(logits, iterations, EPS)
    assert_close(fast, plain)
    assert_close(*(torch.autograd.grad((out * weight).sum(), logits)[0] for out in (fast, plain)), "gradient")


@pytest.mark.parametrize("iterations", [1, 2, 20])
def test_gradient_by_finite_differences(iterations: int) -> None:
    logits = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: sinkhorn(x, iterations, 1e-6), logits)


@pytest.mark.parametrize("pattern", ["all high", "all low", "one row", "one column", "diagonal", "checkers"])
def test_extreme_logits_stay_finite(pattern: str) -> None:
    logits = extreme(pattern)[None].requires_grad_()
    mix = sinkhorn(logits, ITERATIONS, EPS)
    assert_close(mix, sinkhorn_definition(logits, ITERATIONS, EPS))
    (grad,) = torch.autograd.grad((mix * torch.arange(16.0).view(4, 4)).sum(), logits)
    assert mix.isfinite().all()
    assert grad.isfinite().all()
    assert (mix.sum(-2) - 1).abs().max() < 2e-6


def extreme(pattern: str) -> Tensor:
    logits = torch.full((4, 4), -50.0)
    if pattern == "all high":
        return -logits
    if pattern == "one row":
        logits[1] = 50.0
    if pattern == "one column":
        logits[:, 2] = 50.0
    if pattern == "diagonal":
        logits.fill_diagonal_(50.0)
    if pattern == "checkers":
        logits[::2, ::2], logits[1::2, 1::2] = 50.0, 50.0
    return logits


def test_an_order_of_streams_is_kept() -> None:
    """A permutation as strong as can be asked for comes out as that permutation."""
    order = torch.tensor([2, 0, 3, 1])
    mix = sinkhorn((50.0 * torch.eye(4)[order])[None], ITERATIONS, EPS)[0]
    assert_close(mix, torch.eye(4)[order])
