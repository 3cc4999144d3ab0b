"""Shared keys and values with sinks, against one query and one head at a time."""

import math

import pytest
import torch

from fourfold.ops.shared import attend_shared
from tests.compare import assert_close

S, C, H, D = 2, 5, 3, 8
SCALE = 0.4


def inputs() -> tuple[torch.Tensor, list[tuple[torch.Tensor, torch.Tensor]], torch.Tensor]:
    """A set of keys for all queries, one gathered for each, and sinks; some queries see nothing of either."""
    sets = [(torch.randn(S, 7, D), torch.rand(S, C, 7) < 0.5), (torch.randn(S, C, 4, D), torch.rand(S, C, 4) < 0.5)]
    for _, mask in sets:
        mask[0, 2] = False
    sets[1][1][1, 3] = False
    return torch.randn(S, C, H, D) * 2, sets, torch.tensor([-3.0, 0.5, 40.0])


def test_one_softmax_over_all_sets_and_the_sink() -> None:
    q, sets, sinks = inputs()
    out, odds = attend_shared(q, sets, sinks, SCALE)
    for s in range(S):
        for c in range(C):
            keys = [(v[s] if v.dim() == 3 else v[s, c])[i] for v, mask in sets for i in mask[s, c].nonzero()[:, 0]]
            for h in range(H):
                weights = [math.exp(SCALE * float(q[s, c, h] @ key)) for key in keys]
                total = sum(weights) + math.exp(float(sinks[h]))
                expected = sum((w / total * key for w, key in zip(weights, keys, strict=True)), torch.zeros(D))
                assert_close(out[s, c, h], expected)
                assert sum(p[s, c, h].sum().item() for p in odds) == pytest.approx(sum(weights) / total, abs=1e-5)
    assert (out[0, 2] == 0).all()
    assert all((p[~mask[:, :, None].expand_as(p)] == 0).all() for p, (_, mask) in zip(odds, sets, strict=True))


def test_sets_may_be_joined() -> None:
    q, sets, sinks = inputs()
    wide = [(v if v.dim() == 4 else v[:, None].expand(-1, C, -1, -1), mask) for v, mask in sets]
    joined = torch.cat([v for v, _ in wide], dim=2), torch.cat([mask for _, mask in wide], dim=2)
    assert_close(attend_shared(q, sets, sinks, SCALE)[0], attend_shared(q, [joined], sinks, SCALE)[0])


def test_gradients() -> None:
    q, sets, sinks = inputs()
    leaves = [y.double().requires_grad_() for y in (q, *(v for v, _ in sets), sinks.clamp(max=2.0))]
    masks = [mask for _, mask in sets]

    def read(q: torch.Tensor, one: torch.Tensor, two: torch.Tensor, sinks: torch.Tensor) -> torch.Tensor:
        return attend_shared(q, [(one, masks[0]), (two, masks[1])], sinks, SCALE)[0]

    # probabilities are worked out in fp32, which is as far as differences can be trusted
    assert torch.autograd.gradcheck(read, leaves, eps=1e-2, atol=2e-3, rtol=2e-2)
