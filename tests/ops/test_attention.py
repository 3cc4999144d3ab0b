"""fast = reference: the fused and the gathering forms against the plain one, outputs and gradients."""

import pytest
import torch
from torch import Tensor

from fourfold.ops.attention import attend, attend_chosen, attend_definition
from tests.compare import assert_close

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


def test_empty_rows_have_no_gradient_and_no_nan() -> None:
    leaves, mask = inputs(SHAPES["grouped"]), masks(SHAPES["grouped"])["empty rows"]
    for out in (attend(*leaves, mask, 1.0), attend_definition(*leaves, mask, 1.0)[0]):
        grads = gradients(out, leaves)
        assert all(g.isfinite().all() for g in grads)
        assert (grads[0][:, 0] == 0).all()
        assert all((g[0] == 0).all() for g in grads)
