"""grouped experts = the naive definition, outputs and all gradients, however the tokens fall on the experts."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor

from fourfold.ops.experts import STEP, experts_definition, grouped_experts, silu_gate, silu_gate_definition, swiglu
from fourfold.weights.stores import MappedStore, ResidentStore
from tests.compare import assert_close
from tests.ops.conftest import Calls
from tests.ops.twins import FORMATS, assert_twins

EXPERTS, WIDTH, HIDDEN = 11, 6, 9
SWIGLU = ("swiglu_forward", "swiglu_backward")
TRAINED = (*SWIGLU, "expert_places", "experts_spread", "experts_combine", "experts_combine_weights")


def stores(
    dtype: torch.dtype = torch.float32, experts: int = EXPERTS, width: int = WIDTH, hidden: int = HIDDEN
) -> tuple[ResidentStore, ResidentStore]:
    gate_up, down = ResidentStore(experts, 2 * width, hidden), ResidentStore(experts, hidden, width)
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


class Given:
    """A store of any tensor, as a form that takes its leaves one by one makes it."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def fetch(self, ids: Tensor) -> Tensor:
        return self.weight[ids]


def plain(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, limit: float | None = None) -> Tensor:
    return experts_definition(x, ids, weights, Given(gate_up), Given(down), limit)


def grouped(x: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, ids: Tensor, limit: float | None = None) -> Tensor:
    made = stores(gate_up.dtype, len(gate_up), down.shape[2], down.shape[1])
    for store, weight in zip(made, (gate_up, down), strict=True):
        store.weight = weight
    return grouped_experts(x, ids, weights, *made, limit)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("kind", KINDS)
def test_grouped_is_the_definition_with_gradients(kind: str, dtype: torch.dtype, kernels: Calls) -> None:
    gate_up, down = stores(dtype)
    ids = routing(kind)
    x, weights = torch.randn(len(ids), HIDDEN).to(dtype).requires_grad_(), torch.rand(ids.shape).requires_grad_()
    leaves = [x, weights, gate_up.weight, down.weight, ids]
    assert_twins(grouped, plain, leaves, "x weights gate_up down", kind, dtype)
    kernels.expect(*TRAINED)
    out = grouped(*leaves)
    idle = [e for e in range(EXPERTS) if e not in ids]
    for grad in torch.autograd.grad(out.sum(), leaves[2:4]):
        assert (grad[idle] == 0).all()


@given(
    tokens=st.integers(1, 20),
    experts=st.integers(1, 9),
    chosen=st.integers(1, 4),
    width=st.integers(1, 20),
    hidden=st.integers(1, 70),
)
def test_every_size(kernels: Calls, tokens: int, experts: int, chosen: int, width: int, hidden: int) -> None:
    """In fp32 alone: at odd sizes a gradient may be the small rest of large terms, each rounded three times in bf16."""
    ids = torch.rand(tokens, experts).argsort(-1)[:, :chosen]  # a view, as the router gives it
    gate_up, down = stores(torch.float32, experts, width, hidden)
    x, weights = torch.randn(tokens, hidden).requires_grad_(), torch.rand(ids.shape).requires_grad_()
    assert_twins(grouped, plain, [x, weights, gate_up.weight, down.weight, ids], "x weights gate_up down")
    kernels.expect(*TRAINED)


@pytest.mark.parametrize("tokens", [STEP - 1, STEP, STEP + 1, 2 * STEP])
def test_groups_that_end_at_a_step(tokens: int, kernels: Calls) -> None:
    """Rows are filled up to whole steps: a group that needs no filling, one that needs a row, and one that needs nearly all."""
    gate_up, down = stores(width=3, hidden=4)
    ids = torch.stack([torch.full((tokens,), 4), torch.arange(tokens) % 2 * 9], 1)
    x, weights = torch.randn(tokens, 4).requires_grad_(), torch.rand(ids.shape).requires_grad_()
    assert_twins(grouped, plain, [x, weights, gate_up.weight, down.weight, ids], "x weights gate_up down")


@pytest.mark.parametrize("frozen", [(0,), (1,), (2, 3), (0, 1), (0, 2, 3)])
def test_some_may_be_frozen(frozen: tuple[int, ...], kernels: Calls) -> None:
    gate_up, down = stores()
    ids = routing("some experts idle")
    leaves = [torch.randn(len(ids), HIDDEN), torch.rand(ids.shape), gate_up.weight, down.weight]
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(i not in frozen)
    assert_twins(lambda *a: grouped(*a, ids), lambda *a: plain(*a, ids), leaves, "x weights gate_up down")


def test_views_are_read_as_they_look(kernels: Calls) -> None:
    gate_up, down = stores()
    x, weights = torch.randn(HIDDEN, 20).requires_grad_(), torch.rand(3, 20).requires_grad_()
    ids = torch.rand(EXPERTS, 20).argsort(0)[:3].T
    leaves = [x, weights, gate_up.weight, down.weight]
    forms = (lambda x, w, g, d, f=f: f(x.T, w.T, g, d, ids) for f in (grouped, plain))
    assert_twins(*forms, leaves, "x weights gate_up down")
    mine, expected = (torch.autograd.grad(f(x.T, weights.T, *leaves[2:], ids).sum(), leaves) for f in (grouped, plain))
    for one, two in zip(mine, expected, strict=True):
        assert_close(one, two)


def test_without_gradients_and_with_them_is_the_same(kernels: Calls) -> None:
    """Training groups its rows in a way of its own, which pays only there."""
    gate_up, down = stores()
    ids = routing("spread")
    x, weights = torch.randn(len(ids), HIDDEN), torch.rand(ids.shape)
    trained = grouped_experts(x, ids, weights, gate_up, down)
    kernels.expect(*{"expert_places", "experts_spread", "experts_combine", "swiglu_forward"})
    with torch.no_grad():
        assert_close(grouped_experts(x, ids, weights, gate_up, down), trained)
    kernels.expect("swiglu_forward")


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("kind", ["few tokens", "one token"])
@pytest.mark.parametrize("limit", [None, 0.5])
def test_few_tokens_are_not_sorted(kind: str, limit: float | None, dtype: torch.dtype, kernels: Calls) -> None:
    (gate_up, down), ids = stores(dtype, width=32, hidden=48), routing(kind)
    x, weights = torch.randn(len(ids), 48).to(dtype), torch.rand(ids.shape)
    expected = plain(x.float(), weights, gate_up.weight.float(), down.weight.float(), ids, limit)
    with torch.no_grad():
        assert_close(grouped_experts(x, ids, weights, gate_up, down, limit), expected, dtype=dtype)
    kernels.expect("experts_few")


@pytest.mark.parametrize("kind", KINDS)
def test_every_choice_of_every_token_counts(kind: str, kernels: Calls) -> None:
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
def test_mapped_experts_are_the_resident_ones_bit_for_bit(kind: str, dtype: torch.dtype, tmp_path: Path, kernels: Calls) -> None:
    gate_up, down = stores(dtype)
    save_file({"gate_up": gate_up.weight.data, "down": down.weight.data}, tmp_path / "experts.safetensors")
    mapped = [MappedStore(tmp_path / "experts.safetensors", name) for name in ("gate_up", "down")]
    ids = routing(kind)
    x, weights = torch.randn(len(ids), HIDDEN).to(dtype), torch.rand(ids.shape)
    with torch.no_grad():
        assert torch.equal(grouped_experts(x, ids, weights, *mapped), grouped_experts(x, ids, weights, gate_up, down))
        assert_close(experts_definition(x, ids, weights, *mapped), experts_definition(x, ids, weights, gate_up, down))


def test_mapped_experts_stay_in_their_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kernels: Calls) -> None:
    """A forward of few tokens reads the experts that it needs, with gradients asked for or not."""
    gate_up, down = stores()
    save_file({"gate_up": gate_up.weight.data, "down": down.weight.data}, tmp_path / "experts.safetensors")
    mapped = [MappedStore(tmp_path / "experts.safetensors", name) for name in ("gate_up", "down")]
    ids = routing("few tokens")
    x, weights = torch.randn(len(ids), HIDDEN).requires_grad_(), torch.rand(ids.shape)
    expected = experts_definition(x, ids, weights, gate_up, down)
    monkeypatch.setattr(MappedStore, "all", lambda store: pytest.fail("the whole stack was read"))
    out = grouped_experts(x, ids, weights, *mapped)
    assert_close(out, expected)
    assert_close(*(torch.autograd.grad(y.sum(), x)[0] for y in (out, expected)))


def test_the_gate_comes_first() -> None:
    x, gate, up, down = torch.tensor([2.0]), 3.0, 5.0, 7.0
    out = swiglu(x, torch.tensor([[gate], [up]]), torch.tensor([[down]]))
    assert_close(out, 7.0 * (6.0 * torch.sigmoid(torch.tensor([6.0])) * 10.0))


@given(
    leading=st.lists(st.integers(1, 6), max_size=2),
    width=st.integers(1, 70),
    dtype=st.sampled_from(FORMATS),
    spread=st.sampled_from([0.1, 3.0, 60.0]),
)
def test_gate_is_its_definition_with_gradients(
    kernels: Calls, leading: list[int], width: int, dtype: torch.dtype, spread: float
) -> None:
    gate_up = (spread * torch.randn(*leading, 2 * width)).to(dtype).requires_grad_()
    assert_twins(silu_gate, silu_gate_definition, [gate_up], "gate_up")
    kernels.expect(*SWIGLU)


@given(width=st.integers(1, 70), dtype=st.sampled_from(FORMATS), limit=st.sampled_from([0.25, 1.0, 7.0]))
def test_a_limited_gate_is_its_definition_with_gradients(kernels: Calls, width: int, dtype: torch.dtype, limit: float) -> None:
    """Many are cut, and the limit itself, which all formats hold exactly, is not."""
    gate_up = (3 * limit * torch.randn(5, 2 * width)).to(dtype)
    gate_up[0, ::3], gate_up[1, ::2] = limit, -limit
    forms = (lambda x, f=f: f(x, limit) for f in (silu_gate, silu_gate_definition))
    assert_twins(*forms, [gate_up.requires_grad_()], "gate_up")
    kernels.expect(*SWIGLU)


def test_what_a_limit_cuts() -> None:
    """Gate above only, up at both sides; what is cut has no slope."""
    gate_up = torch.tensor([[-9.0, 9.0, 1.0, 1.0, 9.0, 9.0, -9.0, 0.5]], requires_grad=True)
    out = silu_gate(gate_up, 2.0)
    gate, up = torch.tensor([-9.0, 2.0, 1.0, 1.0]), torch.tensor([2.0, 2.0, -2.0, 0.5])
    assert_close(out[0], torch.nn.functional.silu(gate) * up)
    slope = torch.autograd.grad(out.sum(), gate_up)[0][0] != 0
    assert slope.tolist() == [True, False, True, True, False, False, False, True]


@pytest.mark.parametrize("kind", KINDS)
def test_limited_experts_are_their_definition_with_gradients(kind: str, kernels: Calls) -> None:
    gate_up, down = stores()
    ids = routing(kind)
    leaves = [torch.randn(len(ids), HIDDEN).requires_grad_(), torch.rand(ids.shape).requires_grad_(), gate_up.weight, down.weight]
    forms = (lambda *y, f=f: f(*y, ids, 0.2) for f in (grouped, plain))
    assert_twins(*forms, leaves, "x weights gate_up down")
    kernels.expect(*TRAINED)
    with torch.no_grad():
        assert_close(grouped(*leaves, ids, 0.2), plain(*leaves, ids, 0.2))
        assert not torch.allclose(plain(*leaves, ids, 0.2), plain(*leaves, ids))


def test_a_gate_may_be_a_view(kernels: Calls) -> None:
    gate_up = torch.randn(12, 5, 3).requires_grad_()
    forms = (lambda x, f=f: f(x.permute(2, 1, 0)).transpose(0, 1) for f in (silu_gate, silu_gate_definition))
    assert_twins(*forms, [gate_up], "gate_up")


@pytest.mark.parametrize("dtype", FORMATS)
def test_extreme_gates_and_what_is_not_a_number(dtype: torch.dtype, kernels: Calls) -> None:
    gate = torch.tensor([0.0, -0.0, -87.0, -100.0, -3e4, 87.0, 100.0, 3e4, torch.inf, torch.nan, 1.0, 1.0])
    up = torch.tensor([2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, 2.0, torch.nan, torch.inf])
    gate_up = torch.cat([gate, up]).to(dtype).requires_grad_()
    out = silu_gate(gate_up)
    expected = silu_gate_definition(gate_up.detach().float())
    assert_close(out[:9], expected[:9], dtype=dtype)
    assert out[[9, 10]].isnan().all()
    assert out[11] == torch.inf
    grad = torch.autograd.grad(out.sum(), gate_up)[0]
    assert grad[:8].isfinite().all()
    assert grad[12:20].isfinite().all()
    assert grad[[9, 10]].isnan().all()
