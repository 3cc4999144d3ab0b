"""Losses against plain definitions and hand calculations."""

import math

import pytest
import torch

from fourfold.config import ExpertsConfig
from fourfold.model.experts import Router
from fourfold.model.trace import LayerTrace
from fourfold.ops.cross_entropy import IGNORED
from fourfold.training.losses import (
    balance_loss,
    dead_fraction,
    expert_counts,
    expert_loads,
    indexer_loss,
    targets_ahead,
)
from fourfold.training.metrics import gain_metrics, load_metrics


def test_targets_never_cross_a_document_or_the_row():
    tokens = torch.tensor([[10, 11, 12, 13, 14, 15]])
    documents = torch.tensor([[0, 0, 0, 1, 1, 1]])
    assert targets_ahead(tokens, documents, 1).tolist() == [[11, 12, IGNORED, 14, 15]]
    assert targets_ahead(tokens, documents, 2).tolist() == [[12, IGNORED, IGNORED, 15, IGNORED]]
    assert targets_ahead(tokens, documents, 3).tolist() == [[IGNORED] * 5]


def test_balance_loss_by_hand():
    # two rows of two tokens, three experts, two chosen each
    ids = torch.tensor([[0, 1], [0, 1], [0, 2], [1, 2]])
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.4, 0.4, 0.2], [0.6, 0.1, 0.3], [0.2, 0.4, 0.4]])
    f = [[3 / 4 * c for c in (2, 2, 0)], [3 / 4 * c for c in (1, 1, 2)]]  # E / (K T) · count
    p = [[0.45, 0.35, 0.2], [0.4, 0.25, 0.35]]
    expected = sum(a * b for row in zip(f, p, strict=True) for a, b in zip(*row, strict=True)) / 2
    assert balance_loss(LayerTrace(expert_ids=ids, expert_scores=scores), 2, 2).item() == pytest.approx(expected)
    even = LayerTrace(expert_ids=torch.tensor([[0, 1], [2, 0], [1, 2]]), expert_scores=torch.full((3, 3), 1 / 3))
    assert balance_loss(even, 1, 2).item() == pytest.approx(1.0)


def test_bias_update_by_hand():
    router = Router(4, ExpertsConfig(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=4))
    router.bias.copy_(torch.tensor([0.0, 0.5, 0.0, 0.0]))
    ids = torch.tensor([[0, 0], [0, 1], [3, 3], [3, 1]])
    load = expert_loads(ids, torch.zeros(4, dtype=torch.uint8), 4)
    assert load[0].tolist() == expert_counts(ids.flatten(), 4).tolist() == [3, 2, 0, 3] and not load[1:].any()
    router.balance(load, 0.1)
    torch.testing.assert_close(router.bias, torch.tensor([-0.1, 0.5, 0.1, -0.1]))
    assert load_metrics([load.sum(0)]) == {"expert_load_max": 1.5, "expert_load_min": 0.0}


def indexer_trace(scores, mass=None):
    mask = torch.ones(1, 4, 4, dtype=torch.bool).tril()
    mass = torch.rand(1, 4, 4).tril() if mass is None else mass
    return LayerTrace(index_scores=scores, index_mask=mask, attention_mass=mass / mass.sum(-1, keepdim=True))


def test_indexer_loss_is_the_divergence_over_what_may_be_judged():
    torch.manual_seed(0)
    trace = indexer_trace(torch.randn(1, 4, 4, requires_grad=True))
    expected = 0.0
    for t in range(4):
        p = trace.attention_mass[0, t, : t + 1].tolist()
        q = trace.index_scores[0, t, : t + 1].softmax(-1).tolist()
        expected += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 4
    loss = indexer_loss(trace)
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    loss.backward()
    assert trace.index_scores.grad.isfinite().all() and not trace.index_scores.grad.triu(1).any()
    same = indexer_trace(torch.zeros(1, 4, 4), torch.ones(1, 4, 4).tril())
    assert indexer_loss(same).item() == pytest.approx(0.0, abs=1e-6)


def test_dead_queries_are_those_whose_visible_scores_are_all_zero():
    """Each eighth query is looked at: 0, 8, 16 and 24 of these 25."""
    mask = torch.ones(1, 25, 25, dtype=torch.bool).tril()
    scores = torch.zeros(1, 25, 25)
    trace = LayerTrace(index_scores=scores, index_mask=mask)
    assert dead_fraction(trace) == 1.0
    scores[0, 16, 1] = 1e-9
    scores[0, 8, 9] = 1.0  # not visible: the query stays dead
    scores[0, 9:15] = 1.0  # not looked at
    assert dead_fraction(trace) == 0.75
    mask[0, 24] = False  # judges nothing: it is not counted
    assert dead_fraction(trace) == pytest.approx(2 / 3)
    mask[:] = False
    assert dead_fraction(trace) == 0.0


def test_composite_gain():
    shuffle = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).expand(3, 2, 2)
    doubling = torch.tensor([[2.0, 0.0], [1.0, 1.0]]).expand(3, 2, 2)
    assert gain_metrics([LayerTrace()]) == {}
    kept = gain_metrics([LayerTrace(stream_mixing=[shuffle, shuffle])])
    assert set(kept.values()) == {1.0}
    grown = gain_metrics([LayerTrace(stream_mixing=[doubling]), LayerTrace(stream_mixing=[doubling])])  # product [[4, 0], [3, 1]]
    assert grown == {"residual_gain": 7.0, "residual_gain_backward": 4.0, "residual_gain_min": 1.0}
