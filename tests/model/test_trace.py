"""What a forward writes down: shapes, sums, and who learns from what."""

import pytest
import torch

from fourfold.model.inputs import Batch
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from tests.builders import build, everything, grouped, multi_head, random_tokens
from tests.compare import assert_close, assert_same_selection

ROWS, LENGTH = 2, 50


@pytest.fixture(params=[everything, grouped])
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(request.param())


def traced(model: Transformer, selection: str, mass: bool = True, documents: torch.Tensor | None = None) -> Trace:
    trace = Trace(attention_mass=mass)
    model.train_forward(Batch.from_tokens(random_tokens(ROWS, LENGTH), documents), trace, selection)
    return trace


def causal() -> torch.Tensor:
    return torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril().expand(ROWS, -1, -1)


@pytest.mark.parametrize("selection", ["sparse", "dense"])
def test_shapes_and_sums(model: Transformer, selection: str) -> None:
    config, trace = model.config, traced(model, selection)
    assert len(trace.layers) == config.num_hidden_layers + config.num_nextn_predict_layers
    for i, layer in enumerate(trace.layers):
        if config.has_experts(i):
            assert layer.expert_ids.shape == (ROWS * LENGTH, config.experts.num_experts_per_tok)
            assert layer.expert_scores.shape == (ROWS * LENGTH, config.experts.n_routed_experts)
            assert_close(layer.expert_scores.sum(-1), torch.ones(ROWS * LENGTH))
        else:
            assert layer.expert_ids is None
            assert layer.expert_scores is None
        for record in (layer.index_scores, layer.index_mask, layer.attention_mass):
            assert record.shape == (ROWS, LENGTH, LENGTH)
        assert_close(layer.attention_mass.sum(-1), torch.ones(ROWS, LENGTH))
        assert (layer.attention_mass[~layer.index_mask] == 0).all()
        assert not layer.attention_mass.requires_grad
        n = config.streams.hc_mult
        assert [tuple(mix.shape) for mix in layer.stream_mixing] == [(ROWS * LENGTH, n, n)] * 2
        assert not any(mix.requires_grad for mix in layer.stream_mixing)


def test_the_mask_names_what_may_be_judged(model: Transformer) -> None:
    topk = model.config.selection.index_topk
    for layer in traced(model, "dense").layers:
        assert_same_selection(layer.index_mask, causal())
    for layer in traced(model, "sparse").layers:
        assert not (layer.index_mask & ~causal()).any()
        counts = layer.index_mask.sum(-1)
        assert counts.tolist() == [[min(t + 1, topk) for t in range(LENGTH)]] * ROWS
        chosen = layer.index_scores.masked_fill(~layer.index_mask, torch.inf).amin(-1)
        left = layer.index_scores.masked_fill(layer.index_mask | ~causal(), -torch.inf).amax(-1)
        assert (chosen >= left).all()


def test_the_mask_keeps_documents_apart(model: Transformer) -> None:
    documents = torch.repeat_interleave(torch.arange(3), torch.tensor([5, 30, 15])).expand(ROWS, -1)
    own = documents[:, :, None] == documents[:, None]
    for layer in traced(model, "dense", documents=documents).layers:
        assert_same_selection(layer.index_mask, own & causal())
    for layer in traced(model, "sparse", documents=documents).layers:
        assert not (layer.index_mask & ~(own & causal())).any()
        assert_close(layer.attention_mass.sum(-1), torch.ones(ROWS, LENGTH))


def test_mass_is_the_mean_over_heads_of_the_attention() -> None:
    """Against probabilities worked out here from the projected queries and keys of the first layer."""
    model = build(multi_head().but(selection=everything().selection))
    trace, seen = Trace(attention_mass=True), []
    attention = model.layers[0].attention
    attention.register_forward_pre_hook(lambda _, args: seen.append(args))
    with torch.no_grad():
        model.trunk(Batch.from_tokens(random_tokens(1, 20)), trace=trace, selection="dense")
        q, rows, _ = attention.project(seen[0][0], seen[0][1])
        scores = torch.einsum("qhd,khd->hqk", q, rows["key"]) * 8**-0.5
        later = torch.ones(20, 20, dtype=torch.bool).triu(1)
        expected = scores.masked_fill(later, -torch.inf).softmax(-1).mean(0)
    assert_close(trace.layers[0].attention_mass[0], expected)


@pytest.mark.parametrize("selection", ["sparse", "dense"])
def test_asking_for_a_trace_changes_nothing(model: Transformer, selection: str) -> None:
    batch = Batch.from_tokens(random_tokens(ROWS, LENGTH))
    with torch.no_grad():
        plain = model.train_forward(batch, None, selection)
        for mass in (True, False):
            own = model.train_forward(batch, Trace(attention_mass=mass), selection)
            for mine, expected in zip([own.hidden, *own.mtp_hidden], [plain.hidden, *plain.mtp_hidden], strict=True):
                assert_close(mine, expected)


def test_language_loss_leaves_the_indexer_alone(model: Transformer) -> None:
    out = model.train_forward(Batch.from_tokens(random_tokens(ROWS, LENGTH)), Trace(attention_mass=True), "sparse")
    sum(model.logits(hidden).logsumexp(-1).sum() for hidden in [out.hidden, *out.mtp_hidden]).backward()
    indexers = dict(model.indexer_parameters())
    layers = model.config.num_hidden_layers + model.config.num_nextn_predict_layers
    assert len(indexers) == 5 * layers  # wq_b, wk, k_norm's weight and bias, weights_proj
    assert all(parameter.grad is None for parameter in indexers.values())
    untouched = {name for name, p in model.named_parameters() if p.grad is None} - set(indexers)
    assert not untouched
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_index_scores_teach_the_indexer_alone(model: Transformer) -> None:
    for selection in ("dense", "sparse"):
        model.zero_grad()
        trace = traced(model, selection)
        sum(layer.index_scores.square().sum() for layer in trace.layers).backward()
        indexers = dict(model.indexer_parameters())
        for name, parameter in model.named_parameters():
            if name in indexers:
                assert parameter.grad.abs().sum() > 0, name
            else:
                assert parameter.grad is None, name


def test_router_scores_have_a_gradient(model: Transformer) -> None:
    scores = [layer.expert_scores for layer in traced(model, "sparse").layers if layer.expert_scores is not None]
    sum((s * torch.arange(float(s.shape[-1]))).sum() for s in scores).backward()
    assert all(router.weight.grad.abs().sum() > 0 for router in model.routers())


def test_routers_come_in_the_order_of_the_trace() -> None:
    """A bias that makes expert e the first choice of router e shows which record belongs to which router."""
    model = build(everything())
    routers = model.routers()
    for i, router in enumerate(routers):
        router.bias.zero_()[i] = 50.0
    first = [layer.expert_ids[:, 0] for layer in traced(model, "sparse").layers if layer.expert_ids is not None]
    assert [int(ids.unique()) for ids in first] == list(range(len(routers)))


def test_a_trace_through_a_cache_has_the_keys_seen_so_far(model: Transformer) -> None:
    tokens, cache = random_tokens(ROWS, LENGTH), model.new_cache(ROWS)
    with torch.no_grad():
        model(tokens[:, :40], cache=cache)
        trace = model(tokens[:, 40:], cache=cache, trace=Trace(attention_mass=True)).trace
    for layer in trace.layers:
        assert layer.index_scores.shape == layer.attention_mass.shape == (ROWS, LENGTH - 40, LENGTH)
