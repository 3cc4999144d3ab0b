"""fast = reference: the fused, the gathering and the training form against the plain one, outputs and gradients."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourfold.ops import attention as attention_module
from fourfold.ops import parts
from fourfold.ops.attention import attend, attend_chosen, attend_definition, attend_in_parts
from tests.compare import assert_close
from tests.ops.conftest import Calls
from tests.ops.twins import FORMATS, assert_twins

SHAPES = {  # sequences, queries, keys, heads, groups, key width, value width
    "multi-head": (2, 7, 11, 4, 4, 10, 10),
    "grouped": (3, 5, 13, 6, 2, 8, 8),
    "values narrower": (2, 6, 9, 3, 3, 16, 7),
    "values narrower, grouped": (1, 4, 12, 6, 3, 12, 5),
    "values wider": (2, 5, 7, 4, 2, 6, 9),
    "one latent for all": (2, 7, 10, 5, 1, 20, 14),
    "one query": (4, 1, 17, 4, 2, 8, 8),
}


def inputs(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    s, c, k, heads, groups, wide, narrow = shape
    sizes = ((s, c, heads, wide), (s, k, groups, wide), (s, k, groups, narrow))
    return [torch.randn(*size, dtype=dtype).requires_grad_() for size in sizes]


def masks(shape: tuple[int, ...]) -> dict[str, Tensor | None]:
    s, c, k = shape[:3]
    causal = torch.ones(s, c, k, dtype=torch.bool).tril(k - c)
    scattered = torch.rand(s, c, k) < 0.4
    emptied = scattered.clone()
    emptied[:, 0], emptied[0] = False, False
    return {"none": None, "causal": causal, "scattered": scattered, "empty rows": emptied}


def windows(s: int, c: int, k: int) -> Tensor:
    """Every query reads some keys of a range of its own, as in packed documents; a few read nothing."""
    first, width = torch.randint(0, k, (s, c, 1)), torch.randint(0, k // 2 + 2, (s, c, 1))
    keys = torch.arange(k)
    return (keys >= first) & (keys < first + width) & (torch.rand(s, c, k) < 0.8)


def gradients(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view_as(out)
    return torch.autograd.grad((out * weight).sum(), leaves)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["none", "causal", "scattered", "empty rows"])
def test_fused_attention_is_the_definition(name: str, kind: str) -> None:
    leaves, mask = inputs(SHAPES[name]), masks(SHAPES[name])[kind]
    expected, _ = attend_definition(*leaves, mask, 0.37)
    out = attend(*leaves, mask, 0.37)
    assert_close(out, expected, f"{name}, {kind}")
    for what, mine, theirs in zip("qkv", gradients(out, leaves), gradients(expected, leaves), strict=True):
        assert_close(mine, theirs, f"{name}, {kind}: gradient of {what}")


@pytest.mark.parametrize("name", SHAPES)
def test_chosen_keys_are_the_definition_under_their_mask(name: str) -> None:
    shape = SHAPES[name]
    s, c, k = shape[:3]
    leaves, count = inputs(shape), 4
    indices = torch.rand(s, c, k).argsort(-1)[..., :count].sort(-1).values
    valid = torch.rand(s, c, count) < 0.7
    valid[:, 0] = False
    mask = torch.zeros(s, c, k, dtype=torch.bool).scatter(-1, indices, valid)
    expected, _ = attend_definition(*leaves, mask, 0.37)
    out = attend_chosen(*leaves, indices, valid, 0.37)
    assert_close(out, expected, name)
    assert (out[:, 0] == 0).all()
    for what, mine, theirs in zip("qkv", gradients(out, leaves), gradients(expected, leaves), strict=True):
        assert_close(mine, theirs, f"{name}: gradient of {what}")


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 5), st.integers(1, 40)),
    heads=st.sampled_from([(1, 1), (6, 2), (4, 4), (5, 1)]),
    widths=st.sampled_from([(16, 16), (80, 64), (32, 80)]),
    kind=st.sampled_from(["none", "causal", "scattered", "empty rows"]),
    dtype=st.sampled_from(FORMATS),
)
def test_a_few_queries_without_gradients(
    kernels: Calls, shape: tuple[int, ...], heads: tuple[int, int], widths: tuple[int, int], kind: str, dtype: torch.dtype
) -> None:
    """Keys and values as they lie in a memory with room for more, and values that are a part of the keys."""
    s, c, k = shape
    q, room = torch.randn(s, c, heads[0], widths[0]).to(dtype), torch.randn(s + 1, k + 3, heads[1], max(widths)).to(dtype)
    keys, values = (room[:s, :k, :, :width] for width in widths)
    mask = masks(shape)[kind] if k >= c else None
    expected, _ = attend_definition(q.float(), keys.float(), values.float(), mask, 0.37)
    with torch.no_grad():
        assert_close(attend(q, keys, values, mask, 0.37), expected, dtype=dtype)
    kernels.expect(*["attend_few"] * (c <= attention_module.FEW))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_formats(dtype: torch.dtype) -> None:
    for name, shape in SHAPES.items():
        leaves, mask = inputs(shape, dtype), masks(shape)["scattered"]
        expected, probabilities = attend_definition(*[x.double() for x in leaves], mask, 0.37)
        assert_close(attend(*leaves, mask, 0.37), expected, name)
        assert_close(attend_definition(*leaves, mask, 0.37)[0], expected, name)
        assert (probabilities.sum(-1)[mask.any(-1)[:, None].expand(probabilities.shape[:-1])] - 1).abs().max() < 1e-6


def test_probabilities_are_those_of_a_hand_count() -> None:
    q, k = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([[[[1.0, 0.0]], [[0.0, 5.0]], [[2.0, 0.0]]]])
    v = torch.tensor([[[[1.0]], [[10.0]], [[100.0]]]])
    mask = torch.tensor([[[True, False, True]]])
    out, probabilities = attend_definition(q, k, v, mask, torch.tensor(2.0).log().item())
    assert_close(probabilities, torch.tensor([[[[1 / 3, 0.0, 2 / 3]]]]))  # 2^1 against 2^2
    assert_close(out, torch.tensor([[[[67.0]]]]))


def test_empty_rows_have_no_gradient_and_no_nan(kernels: Calls) -> None:
    leaves, mask = inputs(SHAPES["grouped"]), masks(SHAPES["grouped"])["empty rows"]
    forms = attend(*leaves, mask, 1.0), attend_definition(*leaves, mask, 1.0)[0], attend_in_parts(*leaves, mask, 1.0)[0]
    for out in forms:
        grads = gradients(out, leaves)
        assert all(g.isfinite().all() for g in grads)
        assert (grads[0][:, 0] == 0).all()
        assert all((g[0] == 0).all() for g in grads)


def in_parts(*leaves: Tensor) -> Tensor:
    """`attend_in_parts` of q, k, v under the mask given last."""
    return attend_in_parts(*leaves, 0.37)[0]


def plain(*leaves: Tensor) -> Tensor:
    return attend_definition(*leaves, 0.37)[0]


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("kind", ["causal", "scattered", "empty rows"])
def test_attention_in_parts_is_the_definition(name: str, kind: str, dtype: torch.dtype, kernels: Calls) -> None:
    leaves, mask = inputs(SHAPES[name], dtype), masks(SHAPES[name])[kind]
    assert_twins(in_parts, plain, [*leaves, mask], "q k v", f"{name}, {kind}")
    kernels.expect("softmax", "softmax_backward")


@given(
    sizes=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 70)),
    groups=st.integers(1, 3),
    repeat=st.integers(1, 3),
    widths=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    part=st.sampled_from([1, 900, 1 << 20]),
)
def test_parts_and_ranges_of_every_size(
    kernels: Calls,
    sizes: tuple[int, int, int],
    groups: int,
    repeat: int,
    widths: tuple[int, int],
    part: int,
) -> None:
    """Output, gradients and mass do not depend on where the parts end; ranges begin and end at multiples of 8 here.

    In fp32 alone: at odd sizes a gradient may be the small rest of large terms that bf16 has rounded.
    """
    shape = (*sizes, groups * repeat, groups, *widths)
    leaves, mask = inputs(shape, torch.float32), windows(*sizes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART", part)
        patch.setattr(parts, "STEP", 8)
        assert_twins(in_parts, plain, [*leaves, mask], "q k v")
        mass = attend_in_parts(*leaves, mask, 0.37, wants_mass=True)[1]
    probabilities = attend_definition(*(leaf.detach().float() for leaf in leaves), mask, 0.37)[1]
    assert mass.dtype == torch.float32
    assert_close(mass, probabilities.mean(1), "mass")
    assert (mass[~mask] == 0).all()
    assert not mass.requires_grad


def test_a_mask_and_a_gradient_may_be_views(kernels: Calls) -> None:
    leaves = inputs(SHAPES["grouped"])
    s, c, k = SHAPES["grouped"][:3]
    one_for_all, turned = (torch.rand(1, c, k) < 0.6).expand(s, -1, -1), (torch.rand(s, k, c) < 0.6).mT
    whole = torch.rand(s, c + 3, k + 5) < 0.6
    for mask in (one_for_all, turned, whole[:, 2:-1, 3:-2]):
        assert_twins(in_parts, plain, [*leaves, mask], "q k v")
        mine, theirs = (torch.autograd.grad(form(*leaves, mask).sum(), leaves) for form in (in_parts, plain))
        for one, two in zip(mine, theirs, strict=True):
            assert_close(one, two)


@pytest.mark.parametrize("frozen", ["q", "k", "v", "kv", "qkv"])
def test_some_may_be_frozen(frozen: str, kernels: Calls) -> None:
    leaves = [leaf.requires_grad_(name not in frozen) for name, leaf in zip("qkv", inputs(SHAPES["multi-head"]), strict=True)]
    mask = masks(SHAPES["multi-head"])["scattered"]
    if len(frozen) < 3:
        assert_twins(in_parts, plain, [*leaves, mask], "q k v")
    out, mass = attend_in_parts(*leaves, mask, 0.37, wants_mass=True)
    assert out.requires_grad is (len(frozen) < 3)
    assert_close(out, plain(*leaves, mask))
    assert_close(mass, attend_definition(*leaves, mask, 0.37)[1].mean(1))


def test_a_graph_may_be_walked_twice(kernels: Calls) -> None:
    leaves, mask = inputs(SHAPES["grouped"]), masks(SHAPES["grouped"])["scattered"]
    out = in_parts(*leaves, mask)
    first, second = (torch.autograd.grad(out.square().sum(), leaves, retain_graph=True) for _ in range(2))
    assert all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("dtype", FORMATS)
def test_softmax_of_what_is_not_finite(dtype: torch.dtype, kernels: Calls) -> None:
    """-inf has no odds; NaN, +inf and nothing but -inf stay visible in their own row, unless the mask hides them."""
    scores = torch.randn(1, 9, 30).to(dtype)  # one head, nine queries
    scores[0, 1, 4] = -torch.inf
    scores[0, 2, 5] = torch.nan
    scores[0, 3, 6] = torch.inf
    scores[0, 4, :] = torch.nan
    scores[0, 5, 2:9] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan, torch.inf, -torch.inf, torch.nan])
    scores[0, 8, :] = -torch.inf
    mask = torch.ones(9, 30, dtype=torch.bool)
    mask[5, 2:9], mask[6] = False, False
    found, mass = scores.clone(), torch.zeros(9, 30)
    attention_module._softmax_(found, mask, mass, slice(0, 9), slice(0, 30), 1, 0.37)
    expected = (scores.float()[0] * 0.37).masked_fill(~mask, -torch.inf).softmax(-1)
    assert_close(found[0, [0, 1, 5, 7]], expected[[0, 1, 5, 7]], dtype=dtype)
    assert found[0, 1, 4] == 0
    assert (found[0, 5, 2:9] == 0).all()
    assert (found[0, 6] == 0).all()
    for row in (2, 3, 4, 8):
        assert found[0, row].isnan().any()
        assert mass[row].isnan().any()
    assert mass[[0, 1, 5, 6, 7]].isfinite().all()


def test_small_odds_are_as_exact_as_large_ones(kernels: Calls) -> None:
    """Of two keys, the second e^-x times as likely: right to a few units of the last place, until it vanishes."""
    x = torch.linspace(0, 86, 5000)
    scores = torch.stack([torch.zeros_like(x), -x], -1)[None].contiguous()
    attention_module._softmax_(scores, torch.ones(5000, 2, dtype=torch.bool), None, slice(0, 5000), slice(0, 2), 1, 1.0)
    expected = (-x.double()).sigmoid()
    assert ((scores[0, :, 1].double() - expected) / expected).abs().max() < 1e-6
    far = torch.tensor([[[0.0, -104.0], [0.0, -1e30]]])
    attention_module._softmax_(far, torch.ones(2, 2, dtype=torch.bool), None, slice(0, 2), slice(0, 2), 1, 1.0)
    assert far.tolist() == [[[1.0, 0.0], [1.0, 0.0]]]


def test_scores_of_any_size_have_a_finite_softmax(kernels: Calls) -> None:
    """The largest score may stand hundreds above the others, as fast_exp's range ends at 87."""
    q, k = torch.tensor([[[[100.0]], [[-100.0]], [[1e-30]]]]), torch.linspace(-40, 40, 33).view(1, 33, 1, 1)
    leaves = [q.requires_grad_(), k.requires_grad_(), torch.randn(1, 33, 1, 3).requires_grad_(), torch.ones(1, 3, 33) > 0]
    assert_twins(in_parts, plain, leaves, "q k v")
