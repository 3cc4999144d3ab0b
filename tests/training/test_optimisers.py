"""Optimisers and schedules against their definitions and against hand calculations."""

import pytest
import torch
from torch import nn

from fourfold.model.transformer import Transformer
from fourfold.training.muon import Muon, newton_schulz, newton_schulz_plain
from fourfold.training.optim import MasterWeights, Optimizer, OptimizerSettings, parts_of
from fourfold.training.schedule import warmup_cosine, warmup_stable_decay
from tests.model import compressing


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


@pytest.mark.parametrize("shape", [(12, 10), (3, 12, 10), (3, 40, 10)])
def test_muon_orthogonalises_gate_and_up_apart(shape):
    """A weight of two parts steps as two weights: the upper half of the rows is the gate, of each expert its own."""
    torch.manual_seed(4)
    weight, half = nn.Parameter(torch.randn(shape)), shape[-2] // 2
    gate, up = (nn.Parameter(part.detach().clone()) for part in (weight[..., :half, :], weight[..., half:, :]))
    together, apart = Muon([{"params": [weight], "parts": 2}], lr=0.1, weight_decay=0.1), Muon([gate, up], lr=0.1, weight_decay=0.1)
    for _ in range(3):
        weight.grad = torch.randn(shape) * torch.cat([torch.full((half, 1), 100.0), torch.ones(half, 1)])
        gate.grad, up.grad = weight.grad[..., :half, :].clone(), weight.grad[..., half:, :].clone()
        together.step()
        apart.step()
    torch.testing.assert_close(weight, torch.cat([gate, up], -2))


def test_a_large_gradient_of_the_gate_does_not_hold_up_still():
    """As one matrix, whose larger half decides its norm, it would."""
    grad, moved = torch.randn(40, 10, generator=torch.Generator().manual_seed(5)), []
    grad[:20] *= 100
    for parts in (1, 2):
        weight = nn.Parameter(torch.zeros(40, 10))
        weight.grad = grad.clone()
        Muon([{"params": [weight], "parts": parts}], lr=0.1).step()
        moved.append(weight.detach()[20:].norm())
    assert moved[0] < 0.1 * moved[1]


def test_the_optimiser_knows_which_weights_are_two(tiny):
    """Feed-forward and experts alike; every other matrix is one, and each parameter is moved by one optimiser."""
    model = Transformer(tiny.config, tiny.token_classes).init_weights(1)
    optimizer = Optimizer(model, OptimizerSettings(), {name for name, _ in model.indexer_parameters()})
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts = {names[id(p)]: g["parts"] for o in optimizer.optimizers for g in o.param_groups for p in g["params"]}
    assert parts.keys() == set(names.values())
    assert sum(len(g["params"]) for o in optimizer.optimizers for g in o.param_groups) == len(names)
    two = {name for name, count in parts.items() if count == 2}
    assert two == {name for name in names.values() if ".gate_up" in name}
    assert {name.rsplit(".", 2)[-2] for name in two} == {"gate_up", "gate_up_proj"}
    assert all(parts_of(name) == count for name, count in parts.items())
    for name in two:
        assert dict(model.named_parameters())[name].shape[-2] % 2 == 0


def test_the_output_projection_of_compressed_attention_is_a_matrix_for_each_group_of_heads():
    model = Transformer(compressing.small()).init_weights(1)
    optimizer = Optimizer(model, OptimizerSettings())
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    parts = {names[id(p)]: group["parts"] for o in optimizer.optimizers for group in o.param_groups for p in group["params"]}
    projections = {name for name in parts if ".o_a_proj." in name}
    assert len(projections) == 4 and {parts[name] for name in projections} == {model.config.compression.o_groups} == {3}
    weight = model.layers[0].attention.o_a_proj.weight
    weight.grad = torch.randn_like(weight)
    groups = [nn.Parameter(part.detach().clone()) for part in weight.chunk(3)]
    for group, grad in zip(groups, weight.grad.chunk(3), strict=True):
        group.grad = grad.clone()
    Muon(groups, lr=0.1).step()
    Muon([{"params": [weight], "parts": 3}], lr=0.1).step()
    torch.testing.assert_close(weight, torch.cat(groups))


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
