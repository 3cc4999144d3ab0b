"""Optimisers and schedules against their definitions and against hand calculations."""

import pytest
import torch
from torch import nn

from fourfold.training.muon import Muon, newton_schulz, newton_schulz_plain
from fourfold.training.optim import MasterWeights
from fourfold.training.schedule import warmup_cosine, warmup_stable_decay


@pytest.mark.parametrize("shape", [(5, 12, 20), (3, 20, 12), (1, 8, 8)])
def test_batched_newton_schulz_is_the_definition(shape):
    stack = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    plain = torch.stack([newton_schulz_plain(matrix) for matrix in stack])
    torch.testing.assert_close(newton_schulz(stack), plain, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(newton_schulz(stack, torch.bfloat16), plain, atol=0.05, rtol=0.1)
    singular = torch.linalg.svdvals(plain)
    assert 0.3 < singular.min() and singular.max() < 1.3  # nearly orthogonal: that is what the iteration is for


def test_muon_steps_a_stack_as_it_steps_its_matrices():
    torch.manual_seed(2)
    stack = nn.Parameter(torch.randn(4, 6, 10))
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    together = Muon([stack], lr=0.1, weight_decay=0.1)
    apart = Muon(alone, lr=0.1, weight_decay=0.1)
    for _ in range(3):
        stack.grad = torch.randn_like(stack)
        for matrix, grad in zip(alone, stack.grad, strict=True):
            matrix.grad = grad.clone()
        together.step()
        apart.step()
    torch.testing.assert_close(stack, torch.stack(list(alone)))


def test_muon_step_by_hand():
    weight = nn.Parameter(torch.randn(6, 10, generator=torch.Generator().manual_seed(3)))
    start, grads = weight.detach().clone(), [torch.randn(6, 10), torch.randn(6, 10)]
    optimizer = Muon([weight], lr=0.01, momentum=0.9, weight_decay=0.5)
    momentum, expected = torch.zeros(6, 10), start
    for grad in grads:
        weight.grad = grad.clone()
        optimizer.step()
        momentum = 0.9 * momentum + grad
        update = newton_schulz_plain(grad + 0.9 * momentum)
        expected = expected * (1 - 0.01 * 0.5) - 0.01 * 0.2 * 10**0.5 * update
    torch.testing.assert_close(weight.detach(), expected, atol=1e-6, rtol=1e-5)
    assert 0.1 < update.square().mean().sqrt() * 0.2 * 10**0.5 < 0.3  # about the 0.2 of an AdamW step


def test_masters_keep_what_bf16_would_lose():
    weight = nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    own = nn.Parameter(torch.ones(4))
    masters = MasterWeights([weight, own])
    assert masters.masters[1] is own and masters.masters[0].dtype == torch.float32
    optimizer = torch.optim.SGD(masters.masters, lr=1e-3)
    for _ in range(10):  # each step is far below the spacing of bf16 at 1
        weight.grad, own.grad = torch.ones(4, dtype=torch.bfloat16), torch.ones(4)
        masters.pull_gradients()
        assert weight.grad is None
        optimizer.step()
        masters.push_weights()
    torch.testing.assert_close(masters.masters[0], torch.full((4,), 0.99))
    assert weight.dtype == torch.bfloat16 and (weight < 1).all() and torch.equal(weight, masters.masters[0].bfloat16())
    saved = [tensor.clone() for tensor in masters.state_dict()]
    fresh = MasterWeights([nn.Parameter(torch.zeros(4, dtype=torch.bfloat16)), nn.Parameter(torch.zeros(4))])
    fresh.load_state_dict(saved)
    assert torch.equal(fresh.parameters[0], weight) and torch.equal(fresh.masters[0], masters.masters[0])


def test_schedules_at_their_edges():
    wsd = [warmup_stable_decay(step, 100, 10, 20, 0.1) for step in range(100)]
    assert wsd[0] == pytest.approx(0.1) and wsd[9] == 1.0 and wsd[79] == 1.0
    assert 0.1 < wsd[80] < 1.0 and wsd[99] == pytest.approx(0.1)
    assert all(a >= b for a, b in zip(wsd[10:], wsd[11:], strict=False))
    cosine = [warmup_cosine(step, 100, 10, 0, 0.1) for step in range(100)]
    assert cosine[9] == 1.0 and cosine[99] == pytest.approx(0.1) and cosine[54] == pytest.approx(0.55, abs=0.01)
    for schedule in (warmup_stable_decay, warmup_cosine):
        assert schedule(0, 1, 0, 0, 0.0) in (1.0, 0.0) and schedule(0, 1, 1, 0, 0.5) == 1.0
        assert all(0 < schedule(step, 7, 0, 7, 0.1) <= 1 for step in range(7))
    assert warmup_stable_decay(5, 10, 0, 0, 0.1) == 1.0
