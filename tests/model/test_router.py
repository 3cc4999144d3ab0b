"""The V2 and V3 routers against the published rules, written out for one token at a time in plain Python."""

import math

import numpy as np
import pytest
import torch

from fourfold.config import ExpertsConfig
from fourfold.model.experts import Router
from fourfold.presets import preset
from tests.compare import assert_close, assert_same_selection

HIDDEN, TOKENS = 12, 200
V3 = ExpertsConfig(
    n_routed_experts=24, num_experts_per_tok=5, moe_intermediate_size=4, n_group=6, topk_group=3, routed_scaling_factor=2.5
)
V2 = V3.but(topk_method="group_limited_greedy", scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=16.0)
KINDS = {
    "v3": V3,
    "v3, no groups": V3.but(n_group=1, topk_group=1),
    "v3, one group kept": V3.but(n_group=3, topk_group=1),
    "v2": V2,
    "v2-lite": V2.but(topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0),
    "softmax with a bias": V3.but(scoring_func="softmax"),
    "sigmoid, greedy, kept as they are": V3.but(topk_method="greedy", norm_topk_prob=False),
    "v4": V3.but(scoring_func="sqrtsoftplus", n_group=1, topk_group=1, routed_scaling_factor=1.5),
}


def router(config: ExpertsConfig, bias: float = 0.3) -> Router:
    made = Router(HIDDEN, config)
    torch.nn.init.normal_(made.weight, std=0.5)
    if made.balanced:
        made.bias.normal_(0.0, bias)
    return made


def by_hand(x: list[float], weight: list[list[float]], bias: list[float], c: ExpertsConfig) -> tuple[list[int], dict[int, float]]:
    """The experts of one token, best first, and their weights."""
    logits = [sum(a * b for a, b in zip(x, row, strict=True)) for row in weight]
    if c.scoring_func == "sigmoid":
        scores = [1 / (1 + math.exp(-z)) for z in logits]
    elif c.scoring_func == "sqrtsoftplus":
        scores = [math.sqrt(math.log1p(math.exp(z))) for z in logits]
    else:
        total = sum(math.exp(z) for z in logits)
        scores = [math.exp(z) / total for z in logits]
    judged = [s + b for s, b in zip(scores, bias, strict=True)]
    allowed = set(range(len(judged)))
    if c.topk_method != "greedy" and c.n_group > 1:
        size = len(judged) // c.n_group
        groups = [judged[g * size : (g + 1) * size] for g in range(c.n_group)]
        worth = [sum(sorted(g)[-2:]) if c.topk_method == "noaux_tc" else max(g) for g in groups]
        kept = sorted(range(c.n_group), key=lambda g: (-worth[g], g))[: c.topk_group]
        allowed = {g * size + i for g in kept for i in range(size)}
    chosen = sorted(allowed, key=lambda e: (-judged[e], e))[: c.num_experts_per_tok]
    share = {e: scores[e] for e in chosen}
    if c.norm_topk_prob:
        share = {e: s / sum(scores[e] for e in chosen) for e, s in share.items()}
    return chosen, {e: s * c.routed_scaling_factor for e, s in share.items()}


@pytest.mark.parametrize("kind", KINDS)
def test_choice_and_weights_are_the_published_ones(kind: str) -> None:
    config, x = KINDS[kind], torch.randn(TOKENS, HIDDEN)
    made = router(config)
    bias = made.bias.tolist() if made.balanced else [0.0] * 24
    with torch.no_grad():
        ids, weights, scores = made(x)
    expected = [by_hand(token, made.weight.double().tolist(), bias, config) for token in x.double().tolist()]
    assert_same_selection(ids, torch.tensor([chosen for chosen, _ in expected]), kind)
    shares = torch.tensor([[share[e] for e in row] for row, (_, share) in zip(ids.tolist(), expected, strict=True)])
    assert_close(weights, shares, kind)
    assert_close(scores.sum(-1), torch.ones(TOKENS))
    assert scores.dtype == weights.dtype == torch.float32


def test_the_bias_chooses_but_never_weighs() -> None:
    made, x = router(V3.but(n_group=1, topk_group=1, norm_topk_prob=False), bias=0.0), torch.randn(50, HIDDEN)
    before = made(x)
    made.bias[3] = 10.0
    ids, weights, scores = made(x)
    assert (ids[:, 0] == 3).all()
    assert_close(weights[:, 0], 2.5 * torch.sigmoid(x @ made.weight[3]))
    assert torch.equal(scores, before[2])
    made.bias[3] = -10.0
    assert (made(x)[0] != 3).all()


def test_a_group_that_is_not_kept_is_out_whatever_its_bias_is_below_zero() -> None:
    """Kept groups may be judged below zero: what is ruled out must lie lower still."""
    made, x = router(V3), torch.randn(50, HIDDEN)
    made.bias.copy_(torch.full((24,), -5.0))
    free = made(x)[0]
    assert all(len({int(e) // 4 for e in row}) <= 3 for row in free)


def test_equal_scores_go_to_the_lower_expert() -> None:
    for config in KINDS.values():
        made = router(config, bias=0.0)
        torch.nn.init.zeros_(made.weight)
        assert made(torch.randn(3, HIDDEN))[0].tolist() == [[0, 1, 2, 3, 4]] * 3


@pytest.mark.parametrize("kind", ["v3", "v2"])
def test_neighbours_change_no_choice(kind: str) -> None:
    made, x = router(KINDS[kind]), torch.randn(TOKENS, HIDDEN)
    ids = made(x)[0]
    assert_same_selection(torch.cat([made(part)[0] for part in x.split(7)]), ids)


def test_gradients_reach_weights_and_scores_but_not_the_bias() -> None:
    made, x = router(V3), torch.randn(20, HIDDEN, requires_grad=True)
    _, weights, scores = made(x)
    for out in (weights, scores):
        grads = torch.autograd.grad((out * torch.rand_like(out)).sum(), (x, made.weight), retain_graph=True)
        assert all(g.abs().sum() > 0 for g in grads)
    assert not made.bias.requires_grad
    assert [name for name, _ in made.named_parameters()] == ["weight"]


def test_a_low_precision_input_is_routed_in_fp32() -> None:
    made, x = router(V3), torch.randn(30, HIDDEN).bfloat16()
    low, exact = made(x), made(x.float())
    assert all(torch.equal(a, b) for a, b in zip(low, exact, strict=True))


@pytest.mark.parametrize("name", ["v3", "v2", "v2-lite", "v4"])
def test_full_size_choices_obey_their_groups(name: str) -> None:
    config = preset(name).experts
    made = Router(HIDDEN, config)
    torch.nn.init.normal_(made.weight, std=0.5)
    ids, weights, _ = made(torch.randn(300, HIDDEN))
    size = config.n_routed_experts // config.n_group
    assert ids.shape == (300, config.num_experts_per_tok)
    assert all(len(set(row)) == len(row) for row in ids.tolist())
    if config.n_group > 1:
        assert all(len({e // size for e in row}) <= config.topk_group for row in ids.tolist())
    if config.norm_topk_prob:
        assert_close(weights.sum(-1), torch.full((300,), config.routed_scaling_factor))


def test_a_token_that_decides_itself_is_only_weighed() -> None:
    """V4's first layers: experts from the table, weights from the scores, no bias and no choice."""
    config = KINDS["v4"]
    made, plain = Router(HIDDEN, config, hashed=50), router(config, bias=0.0)
    made.reset(np.random.default_rng(1))
    made.weight.data = plain.weight.data
    assert not made.balanced and [name for name, _ in made.named_buffers()] == ["tid2eid"]
    assert all(len(set(row)) == len(row) for row in made.tid2eid.tolist())
    assert len({tuple(row) for row in made.tid2eid.tolist()}) > 40
    x, tokens = torch.randn(30, HIDDEN), torch.randint(0, 50, (30,))
    ids, weights, scores = made(x, tokens)
    assert torch.equal(ids, made.tid2eid[tokens])
    assert_close(scores, plain(x)[2])
    own = plain.scores(x).gather(-1, ids)
    assert_close(weights, 1.5 * own / own.sum(-1, keepdim=True))


def test_scores_of_the_far_left_have_a_slope() -> None:
    made = Router(1, KINDS["v4"].but(n_routed_experts=6, num_experts_per_tok=1))
    made.weight.data = torch.tensor([[-2e4], [-200.0], [-90.0], [-30.0], [0.0], [200.0]])
    scores = made.scores(torch.ones(1, 1))
    assert_close(scores[0, 2:], torch.tensor([0.0, math.exp(-15), math.sqrt(math.log(2)), math.sqrt(200)]))
    assert torch.autograd.grad(scores.sum(), made.weight)[0].isfinite().all()
