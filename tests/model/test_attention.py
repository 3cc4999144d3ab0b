"""Absorbed = expanded; reading by mask = by gathering = in small portions; choosing all there is = dense."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.model import selection as selection_module
from fourfold.model.attention import LatentAttention
from fourfold.model.inputs import Batch
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from tests.builders import INDEXER, build, everything, grouped, random_tokens, wide_latent
from tests.compare import assert_close, assert_same_greedy, assert_same_selection

SPARSE = {"everything": everything, "wide_latent": wide_latent, "grouped": grouped}


@pytest.fixture(scope="module", params=SPARSE)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(SPARSE[request.param]())


def with_topk(config: ModelConfig, topk: int) -> Transformer:
    return build(config.but(selection=config.selection.but(index_topk=topk)))


@pytest.mark.parametrize("config", [everything, wide_latent], ids=["with query latent", "without"])
@pytest.mark.parametrize("selection", ["sparse", "dense"])
def test_absorbed_is_expanded_with_gradients(config, selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(config())
    layer, batch = model.layers[1].attention, Batch.from_tokens(random_tokens(2, 50))
    x = torch.randn(100, model.config.hidden_size).requires_grad_()
    leaves = {"x": x} | {name: p for name, p in layer.named_parameters() if "indexer" not in name}
    outputs, grads = [], []
    for form in (LatentAttention.absorbed, LatentAttention.expanded):
        monkeypatch.setattr(layer, "reader", lambda q, rows, gathers, form=form: form(layer, q, rows["latent"]))
        outputs.append(layer(x, model.context(batch, None, None, selection)))
        weight = torch.linspace(-1, 1, outputs[-1].numel()).view_as(outputs[-1])
        grads.append(torch.autograd.grad((outputs[-1] * weight).sum(), list(leaves.values())))
    assert_close(*outputs)
    assert outputs[0].abs().mean() > 0.05
    for name, absorbed, expanded in zip(leaves, *grads, strict=True):
        assert_close(absorbed, expanded, f"gradient of {name}")


@pytest.mark.parametrize("config", [everything, wide_latent])
def test_both_forms_are_in_use(config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sweeps of test_cache.py are to cover both, so single tokens must be absorbed and a long chunk expanded."""
    model, used = build(config()), []
    for name in ("absorbed", "expanded"):
        form = getattr(LatentAttention, name)
        monkeypatch.setattr(LatentAttention, name, lambda *a, form=form, name=name: used.append(name) or form(*a))
    for length, form in ((30, "expanded"), (1, "absorbed")):
        used.clear()
        with torch.no_grad():
            model(random_tokens(1, length))
        assert used == [form] * 3


@pytest.mark.parametrize("name", SPARSE)
def test_choosing_as_many_as_there_are_is_dense(name: str) -> None:
    tokens = random_tokens(2, 40)
    for topk in (40, 41, 1000):
        model = with_topk(SPARSE[name](), topk)
        with torch.no_grad():
            assert_close(model(tokens).logits, model(tokens, selection="dense").logits, f"top-{topk}")


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("topk", [9, 39])
def test_queries_that_see_no_more_than_topk_read_all(name: str, topk: int) -> None:
    """Here the choice is made: a query's first `topk` keys are all valid and the rest are not."""
    model, tokens = with_topk(SPARSE[name](), topk), random_tokens(2, 96)
    for length in (40, 96):
        with torch.no_grad():
            sparse, dense = model(tokens[:, :length]).logits, model(tokens[:, :length], selection="dense").logits
        assert_close(sparse[:, :topk], dense[:, :topk], f"the first {topk} of {length}")
        if length > topk + 5:
            assert (sparse[:, topk + 5 :] - dense[:, topk + 5 :]).abs().max() > 1e-2, "choosing must change something"


def test_gathering_is_masking(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, logits, traces = random_tokens(2, 70), [], []
    for gather_from in (1, 1000):
        monkeypatch.setattr(selection_module, "GATHER_FROM", gather_from)
        traces.append(Trace())
        with torch.no_grad():
            logits.append(model(tokens, trace=traces[-1]).logits)
    assert_same_greedy(*logits)
    for one, two in zip(traces[0].layers, traces[1].layers, strict=True):
        assert_same_selection(one.index_mask, two.index_mask)


@pytest.mark.parametrize("selection", ["sparse", "dense"])
@pytest.mark.parametrize("budget", [1, 5000])
def test_portions_change_nothing(model: Transformer, selection: str, budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(2, 70)
    with torch.no_grad():
        expected = model(tokens, selection=selection).logits
        monkeypatch.setattr(selection_module, "SCORE_BUDGET", budget)
        assert_same_greedy(model(tokens, selection=selection).logits, expected)


@pytest.mark.parametrize("selection", ["sparse", "dense"])
def test_portions_are_all_in_the_trace(model: Transformer, selection: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch, traces = Batch.from_tokens(random_tokens(2, 50)), []
    for budget in (1 << 26, 9000):
        monkeypatch.setattr(selection_module, "SCORE_BUDGET", budget)
        traces.append(Trace(attention_mass=True))
        model.train_forward(batch, traces[-1], selection)
    for whole, parts in zip(traces[0].layers, traces[1].layers, strict=True):
        assert_close(parts.index_scores, whole.index_scores)
        assert_same_selection(parts.index_mask, whole.index_mask)
        assert_close(parts.attention_mass, whole.attention_mass)


def test_memory_of_a_selection_stays_within_the_budget(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Portions are as large as the budget allows, and never larger unless one query alone is."""
    chunks = list(selection_module.chunks(100, cost_per_query=7))
    assert chunks == [slice(0, 100)]
    monkeypatch.setattr(selection_module, "SCORE_BUDGET", 70)
    chunks = list(selection_module.chunks(25, cost_per_query=7))
    assert chunks == [slice(0, 10), slice(10, 20), slice(20, 25)]
    assert len(list(selection_module.chunks(3, cost_per_query=1000))) == 3


def test_scores_are_the_published_sum() -> None:
    """I_{t,s} = Σ_j w_{t,j} ReLU(q_{t,j} · k_s), one product at a time, with the first channels rotated in halves."""
    model, tokens, trace = build(everything()), random_tokens(1, 12), Trace(attention_mass=True)
    layer, indexer = model.layers[0].attention, model.layers[0].attention.indexer
    seen: dict[str, Tensor] = {}
    layer.indexer.register_forward_pre_hook(lambda _, args: seen.update(x=args[0], latent=args[1]))
    with torch.no_grad():
        model(tokens, trace=trace, selection="dense")
        q = (seen["latent"] @ indexer.wq_b.weight.T).view(12, 5, 14)
        k = F.layer_norm(seen["x"] @ indexer.wk.weight.T, (14,), indexer.k_norm.weight, indexer.k_norm.bias, 1e-6)
        w = seen["x"] @ indexer.weights_proj.weight.T * 5**-0.5 * 14**-0.5
        angle = torch.arange(12.0)[:, None] * model.index_turns  # six channels turn: pairs (0, 3), (1, 4), (2, 5)

    def turned(x: Tensor, t: int) -> Tensor:
        out, cos, sin = x.clone(), angle[t].cos(), angle[t].sin()
        for j in range(3):
            out[..., j] = x[..., j] * cos[j] - x[..., j + 3] * sin[j]
            out[..., j + 3] = x[..., j + 3] * cos[j] + x[..., j] * sin[j]
        return out

    def score(t: int, s: int) -> float:
        return sum(w[t, j].item() * max((turned(q[t, j], t) @ turned(k[s], s)).item(), 0.0) for j in range(5))

    expected = torch.tensor([[score(t, s) for s in range(12)] for t in range(12)])
    assert_close(trace.layers[0].index_scores[0], expected)


def test_choice_is_the_topk_of_what_is_visible_newest_first() -> None:
    model = build(everything().but(selection=INDEXER.but(index_topk=3)))
    indexer = model.layers[0].attention.indexer
    scores = torch.tensor([[[2.0, 1.0, 1.0, 1.0, 9.0], [0.0, 0.0, 0.0, 0.0, 0.0], [5.0, -1.0, -2.0, 0.0, 1.0]]])
    visible = torch.tensor([[[True, True, True, True, False], [True, True, False, True, True], [True, False, False, False, True]]])
    chosen = indexer.choose(slice(0, 3), scores, visible)
    sets = [row[ok].tolist() for row, ok in zip(chosen.indices[0], chosen.valid[0], strict=True)]
    assert sets == [[0, 2, 3], [1, 3, 4], [0, 4]]
    assert chosen.mask(visible, 5).int().tolist() == [[[1, 0, 1, 1, 0], [0, 1, 0, 1, 1], [1, 0, 0, 0, 1]]]
    assert torch.equal(chosen.part(slice(1, 3)).indices, chosen.indices[:, 1:3])
    assert chosen.part(slice(1, 3)).queries == slice(1, 3)
