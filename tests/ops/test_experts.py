"""grouped experts = the naive definition, outputs and all gradients, however the tokens fall on the experts."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from fourfold.ops.experts import experts_definition, grouped_experts, swiglu
from fourfold.weights.stores import MappedStore, ResidentStore
from tests.compare import assert_close

EXPERTS, WIDTH, HIDDEN = 11, 6, 9


def stores(dtype: torch.dtype = torch.float32) -> tuple[ResidentStore, ResidentStore]:
    gate_up, down = ResidentStore(EXPERTS, 2 * WIDTH, HIDDEN), ResidentStore(EXPERTS, HIDDEN, WIDTH)
    for store in (gate_up, down):
        store.to(dtype)
        torch.nn.init.normal_(store.weight, std=0.5)
    return gate_up, down


def routing(kind: str) -> Tensor:
    """Expert ids [N, k]."""
    if kind == "all to one":
        return torch.full((20, 1), 7)
    if kind == "all to the same two":
        return torch.tensor([[10, 0]]).expand(20, 2).contiguous()
    if kind == "few tokens":  # so few experts are needed that those alone are fetched
        return torch.tensor([[3, 9, 0], [3, 1, 9]])
    if kind == "one token":
        return torch.tensor([[10, 4, 2, 0]])
    if kind == "some experts idle":
        return torch.rand(30, EXPERTS - 4).argsort(-1)[:, :3] + 2
    if kind == "half the experts":
        return torch.rand(30, 6).argsort(-1)[:, :2]
    return torch.rand(40, EXPERTS).argsort(-1)[:, :4]


KINDS = ["spread", "all to one", "all to the same two", "few tokens", "one token", "some experts idle", "half the experts"]


@pytest.mark.parametrize("kind", KINDS)
def test_grouped_is_the_definition_with_gradients(kind: str) -> None:
    gate_up, down = stores()
    ids = routing(kind)
    x, weights = torch.randn(len(ids), HIDDEN).requires_grad_(), torch.rand(ids.shape).requires_grad_()
    leaves = {"x": x, "weights": weights, "gate_up": gate_up.weight, "down": down.weight}
    outputs, grads = [], []
    for form in (grouped_experts, experts_definition):
        outputs.append(form(x, ids, weights, gate_up, down))
        grads.append(torch.autograd.grad((outputs[-1] * torch.arange(float(HIDDEN))).sum(), list(leaves.values())))
    assert_close(*outputs, kind)
    for name, mine, expected in zip(leaves, *grads, strict=True):
        assert_close(mine, expected, f"{kind}: gradient of {name}")
    idle = [e for e in range(EXPERTS) if e not in ids]
    assert (grads[0][2][idle] == 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_of_every_token_counts(kind: str) -> None:
    """No token is dropped: with experts that all return the sum of x, the output is the sum of the weights."""
    gate_up, down = ResidentStore(EXPERTS, 2, HIDDEN), ResidentStore(EXPERTS, HIDDEN, 1)
    with torch.no_grad():
        gate_up.weight.fill_(1.0), down.weight.fill_(1.0)
    ids = routing(kind)
    weights, x = torch.rand(ids.shape), torch.randn(len(ids), HIDDEN)
    one = swiglu(x, gate_up.weight[0], down.weight[0])
    assert_close(grouped_experts(x, ids, weights, gate_up, down), one * weights.sum(-1, keepdim=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_mapped_experts_are_the_resident_ones_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    gate_up, down = stores(dtype)
    save_file({"gate_up": gate_up.weight.data, "down": down.weight.data}, tmp_path / "experts.safetensors")
    mapped = [MappedStore(tmp_path / "experts.safetensors", name) for name in ("gate_up", "down")]
    ids = routing(kind)
    x, weights = torch.randn(len(ids), HIDDEN).to(dtype), torch.rand(ids.shape)
    with torch.no_grad():
        assert torch.equal(grouped_experts(x, ids, weights, *mapped), grouped_experts(x, ids, weights, gate_up, down))
        assert_close(experts_definition(x, ids, weights, *mapped), experts_definition(x, ids, weights, gate_up, down))


def test_the_gate_comes_first() -> None:
    x, gate, up, down = torch.tensor([2.0]), 3.0, 5.0, 7.0
    out = swiglu(x, torch.tensor([[gate], [up]]), torch.tensor([[down]]))
    assert_close(out, 7.0 * (6.0 * torch.sigmoid(torch.tensor([6.0])) * 10.0))
