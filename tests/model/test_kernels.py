"""The whole model with kernels = without: logits and gradients, dense and sparse, with and without a trace."""

from collections.abc import Callable
from pathlib import Path
from statistics import median

import pytest
import torch
from torch import Tensor

from fourfold.config import StreamsConfig
from fourfold.model.inputs import Batch
from fourfold.model.streams import HyperConnections
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from fourfold.ops import native
from fourfold.ops.cross_entropy import cross_entropy
from fourfold.ops.indexer import index_kl
from tests.builders import GROUPED, INDEXER, base, build, everything, random_tokens
from tests.compare import assert_close, assert_same_greedy, assert_same_selection

ROWS, LENGTH, SMALL = 2, 41, 1e-2
SEED = 4  # of tokens at which no gate of Engram is nearly zero: the root it takes is so steep there that rounding moves gradients
DOCUMENTS = torch.repeat_interleave(torch.arange(3), torch.tensor([5, 27, 9])).expand(ROWS, -1)


def latent() -> Transformer:
    """V4's design at a width for which every part has kernels, with four streams."""
    return build(everything().but(hidden_size=32, streams=StreamsConfig(hc_mult=4)))


def grouped() -> Transformer:
    """Grouped queries and two streams."""
    config = everything().but(hidden_size=48, streams=StreamsConfig(hc_mult=2), attention=GROUPED, selection=INDEXER)
    return build(config)


def free() -> Transformer:
    """Streams without constraints have no kernels of their own. They mix as at the start of training.

    With random weights they would double from layer to layer, and rounding alone would move gradients by thousandths.
    """
    model = build(everything().but(streams=StreamsConfig(hc_kind="hc", hc_mult=2), memory=None))
    for module in model.modules():
        if isinstance(module, HyperConnections):
            module.reset()
    return model


def plain() -> Transformer:
    """One residual stream."""
    return build(everything().but(streams=None))


@pytest.fixture(autouse=True)
def built(fourfold_home: Path) -> None:
    if native.kernels() is None:
        pytest.skip("kernels are switched off, or there is no g++ to build them")


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run something without kernels."""

    def run(function: Callable) -> object:
        with monkeypatch.context() as patch:
            patch.setattr(native, "ready", lambda *tensors: False)
            patch.setattr(native, "call", lambda *arguments: pytest.fail(f"{arguments[0]} was called"))
            return function()

    return run


def trained(model: Transformer, selection: str, trace: Trace | None) -> dict[str, Tensor]:
    """Losses of a batch of packed documents, and the gradients of every parameter."""
    model.zero_grad()
    tokens = random_tokens(ROWS, LENGTH, seed=SEED)
    out = model.train_forward(Batch.from_tokens(tokens, DOCUMENTS), trace, selection)
    hidden = [out.hidden, *out.mtp_hidden]
    losses = {f"loss {i}": cross_entropy(h, model.head_weight, tokens.flatten(), 10.0) for i, h in enumerate(hidden)}
    judged = [layer for layer in trace.layers if layer.attention_mass is not None] if trace else []
    for i, layer in enumerate(judged):
        losses[f"divergence {i}"] = index_kl(layer.index_scores, layer.attention_mass, layer.index_mask)
    sum(losses.values()).backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {**{name: loss.detach() for name, loss in losses.items()}, **grads}


def used(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    names, call = set(), native.call
    monkeypatch.setattr(native, "call", lambda name, *rest: names.add(name) or call(name, *rest))
    return names


@pytest.mark.parametrize("selection", ["dense", "sparse"])
@pytest.mark.parametrize("traced", ["no trace", "trace", "mass"])
@pytest.mark.parametrize("made", [latent, grouped, free, plain])
def test_training_with_kernels_is_training_without(
    made: Callable[[], Transformer], selection: str, traced: str, without: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, names = made(), used(monkeypatch)

    def run() -> tuple[dict[str, Tensor], Trace | None]:
        trace = None if traced == "no trace" else Trace(attention_mass=traced == "mass")
        return trained(model, selection, trace), trace

    (expected, plain_trace), (found, trace) = without(run), run()
    assert {"rms_norm_backward", "softmax_backward", "swiglu_backward", "experts_combine_weights", "cross_entropy"} <= names
    if made in (latent, grouped):
        assert {f"streams_{way}_backward_{model.config.streams.hc_mult}" for way in ("read", "write")} <= names
    assert ("index_kl" in names) is (traced == "mass")
    assert ("newest_topk" in names) is (selection == "sparse")
    assert found.keys() == expected.keys()
    assert ("layers.0.attention.indexer.wk.weight" in found) is (traced == "mass")
    for name, value in expected.items():
        size = value.abs().max().clamp(SMALL, 1.0)  # small gradients are compared relative to their own size
        assert_close(found[name] / size, value / size, name)
    for mine, theirs in zip(trace.layers if trace else [], plain_trace.layers if plain_trace else [], strict=True):
        if theirs.expert_ids is not None:
            assert_same_selection(mine.expert_ids, theirs.expert_ids)
        if theirs.index_mask is not None:
            assert_same_selection(mine.index_mask, theirs.index_mask)
            assert_close(mine.index_scores[mine.index_mask], theirs.index_scores[mine.index_mask])
        if theirs.attention_mass is not None:
            assert_close(mine.attention_mass, theirs.attention_mass)


@pytest.mark.parametrize("selection", ["dense", "sparse"])
@pytest.mark.parametrize("made", [latent, grouped, free, plain])
def test_logits_with_kernels_are_those_without(made: Callable[[], Transformer], selection: str, without: Callable) -> None:
    """In one pass, with and without gradients, and through a cache in chunks down to single tokens."""
    model, tokens = made(), random_tokens(ROWS, LENGTH)

    def whole() -> Tensor:
        return model(tokens, selection=selection).logits.detach()

    def chunked() -> Tensor:
        cache, chunks = model.new_cache(ROWS), tokens.split([17, 1, 20, 1, 1, 1], dim=1)
        return torch.cat([model(chunk, cache=cache, selection=selection).logits for chunk in chunks], dim=1)

    expected = without(whole)
    assert_same_greedy(whole(), expected, "with gradients")
    with torch.no_grad():
        for form in (whole, chunked):
            assert_same_greedy(form(), expected, form.__name__)
            assert_same_greedy(without(form), expected, f"{form.__name__} without kernels")


def test_a_frozen_trunk_has_no_gradients_and_the_indexers_have_the_same(without: Callable) -> None:
    """As in the stage that trains the indexers alone."""
    model = latent()
    indexers = dict(model.indexer_parameters())
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in indexers)

    def run() -> dict[str, Tensor]:
        model.zero_grad()
        trace = Trace(attention_mass=True)
        model.train_forward(Batch.from_tokens(random_tokens(ROWS, LENGTH), DOCUMENTS), trace, "dense")
        sum(index_kl(layer.index_scores, layer.attention_mass, layer.index_mask) for layer in trace.layers).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    expected, found = without(run), run()
    assert found.keys() == expected.keys() == indexers.keys()
    for name, grad in expected.items():
        size = grad.abs().max().clamp(SMALL, 1.0)
        assert_close(found[name] / size, grad / size, name)


def test_bf16_training_stays_near_fp32(without: Callable) -> None:
    """The kernels are no further off than the definitions: over a few models, as each is one throw of its roundings.

    There are no choices that rounding could tip: no experts, no indexer.
    """
    config = base(streams=StreamsConfig(hc_mult=4)).but(hidden_size=32)

    def low(seed: int) -> dict[str, Tensor]:
        model = build(config, seed)
        for name, parameter in model.named_parameters():
            if not model.keep_fp32(name):
                parameter.data = parameter.data.bfloat16()
        return trained(model, "dense", None)

    def off(values: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
        """The median over the loss and all gradients of their relative error."""
        return median(((values[name].float() - e).norm() / e.norm()).item() for name, e in exact.items())

    mine, theirs = [], []
    for seed in range(1, 5):
        exact = trained(build(config, seed), "dense", None)
        mine.append(off(low(seed), exact))
        theirs.append(off(without(lambda seed=seed: low(seed)), exact))
    assert max(mine) < 0.04
    assert sum(mine) < 1.2 * sum(theirs)
