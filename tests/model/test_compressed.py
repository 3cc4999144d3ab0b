"""Compressed attention (CSA, HCA, window) against a definition one token at a time; its parts, gradients and trace."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.data.rows import RowBatch
from fourfold.model import compressed, selection
from fourfold.model.inputs import Batch
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from fourfold.training.objective import accumulate, set_mode
from tests.builders import build, random_tokens
from tests.compare import assert_close, assert_same_selection
from tests.model.compressing import CONFIGS, DOCUMENTS, LENGTH, plain, small


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(CONFIGS[request.param]())


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries are read a few at a time."""
    monkeypatch.setattr(compressed, "PART", 8)


def by_hand(layer: torch.nn.Module, x: Tensor, config: ModelConfig, kind: str, theta: float) -> Tensor:
    """What a layer's attention makes of x [T, d], written out in double precision for one query and one head at a time."""
    a, c = layer.double(), config.compression
    turns = rotary(config, theta if kind != "window" else config.attention.rope_theta, kind != "window")
    norm = lambda y, w: y / (y.square().mean() + config.rms_norm_eps).sqrt() * w  # noqa: E731
    latent = torch.stack([norm(y, a.q_a_layernorm.weight) for y in x @ a.q_a_proj.weight.T])
    rows = [turned(norm(y, a.kv_norm.weight), t, turns) for t, y in enumerate(x @ a.kv_proj.weight.T)]
    entries = [] if kind == "window" else pooled(a.compressor, x, a.ratio, turns, config.rms_norm_eps)
    out = []
    for t in range(len(x)):
        seen = list(range(min((t + 1) // a.ratio, len(entries)))) if a.ratio else []
        if kind == "csa":
            seen = chosen(a.indexer, x, latent, t, seen, turns, config)
        keys = rows[max(t - c.sliding_window + 1, 0) : t + 1] + [entries[b] for b in seen]
        heads = []
        for head, q in enumerate((a.q_b_proj.weight @ latent[t]).unflatten(0, (a.heads, -1))):
            q = turned(norm(q, 1.0), t, turns)
            odds = [math.exp(float(q @ k) / math.sqrt(len(q))) for k in keys]
            total = sum(odds) + math.exp(float(a.sinks[head]))
            heads.append(turned(sum(p / total * k for p, k in zip(odds, keys, strict=True)), -t, turns))
        flat, groups = torch.cat(heads), c.o_groups
        parts = [w @ h for w, h in zip(a.o_a_proj.weight.chunk(groups), flat.chunk(groups), strict=True)]
        out.append(a.o_b_proj.weight @ torch.cat(parts))
    return torch.stack(out)


def rotary(config: ModelConfig, theta: float, stretched: bool) -> Tensor:
    """Frequencies by YaRN's own formula, in double precision."""
    dim, scaling = config.attention.qk_rope_head_dim, config.attention.rope_scaling
    plain = theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    if not stretched or scaling is None:
        return plain
    place = lambda r: dim * math.log(scaling.original_max_position_embeddings / (2 * math.pi * r)) / (2 * math.log(theta))  # noqa: E731
    low, high = max(math.floor(place(scaling.beta_fast)), 0), min(math.ceil(place(scaling.beta_slow)), dim - 1)
    smooth = 1 - ((torch.arange(dim // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    return plain / scaling.factor * (1 - smooth) + plain * smooth


def turned(x: Tensor, position: int, turns: Tensor) -> Tensor:
    """The last channels of one vector, in pairs."""
    n = 2 * len(turns)
    pair = torch.view_as_complex(x[-n:].reshape(-1, 2).contiguous()) * torch.polar(torch.ones_like(turns), turns * position)
    return torch.cat([x[:-n], torch.view_as_real(pair).flatten()])


def pooled(compressor: torch.nn.Module, x: Tensor, ratio: int, turns: Tensor, eps: float) -> list[Tensor]:
    width, values, gates = compressor.norm.weight.shape[0], x @ compressor.wkv.weight.T, x @ compressor.wgate.weight.T
    entries = []
    for b in range(len(x) // ratio):
        offers = [
            (values[t, -width:], gates[t, -width:] + compressor.ape[t % ratio, -width:]) for t in range(b * ratio, (b + 1) * ratio)
        ]
        if values.shape[1] == 2 * width and b:
            before = range((b - 1) * ratio, b * ratio)
            offers += [(values[t, :width], gates[t, :width] + compressor.ape[t % ratio, :width]) for t in before]
        shares = torch.stack([gate for _, gate in offers]).softmax(0)
        entry = (shares * torch.stack([value for value, _ in offers])).sum(0)
        entries.append(turned(entry / (entry.square().mean() + eps).sqrt() * compressor.norm.weight, b * ratio, turns))
    return entries


def chosen(
    indexer: torch.nn.Module, x: Tensor, latent: Tensor, t: int, seen: list[int], turns: Tensor, config: ModelConfig
) -> list[int]:
    keys = pooled(indexer.compressor, x, config.compression.csa_ratio, turns, config.rms_norm_eps)
    queries = [turned(q, t, turns) for q in (indexer.wq_b.weight @ latent[t]).unflatten(0, (indexer.heads, -1))]
    weights = indexer.weights_proj.weight @ x[t]
    scores = {b: sum(float(w * F.relu(q @ keys[b])) for w, q in zip(weights, queries, strict=True)) for b in seen}
    return sorted(seen, key=lambda b: (scores[b], b), reverse=True)[: config.selection.index_topk]


@pytest.mark.parametrize(("layer", "kind"), [(0, "hca"), (1, "csa"), (2, "window")])
@torch.no_grad()
def test_each_kind_of_layer_is_its_definition(layer: int, kind: str) -> None:
    config, seen = small().but(experts=None), []
    model = build(config)
    attention = model.layers[layer].attention
    attention.register_forward_hook(lambda _, args, out: seen.append((args[0], out)))
    model(random_tokens(1, 40))
    x, out = seen[0]
    expected = by_hand(attention, x.double(), config, kind, config.compression.compress_rope_theta)
    assert expected.std() > 0.05
    assert_close(out, expected, kind, dtype=torch.float32)


@torch.no_grad()
def test_queries_read_in_parts(model: Transformer, often: None, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = random_tokens(2, LENGTH)
    parted = plain(model, tokens)
    monkeypatch.undo()
    assert_close(parted, plain(model, tokens))


@torch.no_grad()
def test_gathered_blocks_are_those_under_the_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    model, tokens = build(small()), random_tokens(2, LENGTH)
    gathered = plain(model, tokens)  # 32 blocks, 4 of them chosen
    monkeypatch.setattr(selection, "GATHER_FROM", 1000)
    assert_close(plain(model, tokens), gathered)


def test_gradients_reach_everything_but_the_indexer() -> None:
    model = build(small())
    tokens = Batch.from_tokens(random_tokens(3, LENGTH), DOCUMENTS)
    out = model.train_forward(tokens)
    sum(y.square().mean() for y in (out.hidden, *out.mtp_hidden)).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    assert without == {"head"} | {name for name, _ in model.indexer_parameters()}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_gradients_by_differences() -> None:
    model = build(small().but(experts=None)).double()
    x, attention = torch.randn(1, 40, 22, dtype=torch.float64), model.layers[0].attention
    batch = Batch.from_tokens(random_tokens(1, 40))
    context = model.context(batch, None, None, "sparse")
    weight = torch.randn(40, 22, dtype=torch.float64)
    for name, parameter in [
        ("sinks", attention.sinks),
        ("ape", attention.compressor.ape),
        ("gate", attention.compressor.wgate.weight),
    ]:
        parameter.grad = None
        (attention(x[0], context) * weight).sum().backward()
        direction, step = torch.randn_like(parameter), 1e-3
        with torch.no_grad():
            sides = []
            for sign in (1, -1):
                parameter.add_(direction, alpha=sign * step)
                sides.append((attention(x[0], context) * weight).sum())
                parameter.sub_(direction, alpha=sign * step)
        measured, told = (sides[0] - sides[1]) / (2 * step), (parameter.grad * direction).sum()
        assert measured.item() == pytest.approx(told.item(), rel=2e-2, abs=2e-3), name


@pytest.mark.parametrize("selection", ["sparse", "dense"])
def test_the_trace_teaches_the_indexer_alone(selection: str) -> None:
    model, trace = build(small()), Trace(attention_mass=True)
    batch = Batch.from_tokens(random_tokens(2, 50))
    with torch.no_grad():
        expected = model.train_forward(batch, selection=selection).hidden
    hidden = model.train_forward(batch, trace, selection).hidden
    assert_close(hidden, expected)
    layer = trace.layers[1]
    blocks = torch.arange(16)
    visible = (blocks < (torch.arange(50)[:, None] + 1) // 3).expand(2, -1, -1)
    if selection == "dense":
        assert_same_selection(layer.index_mask, visible)
    assert layer.index_mask.sum(-1).tolist() == [[min((t + 1) // 3, 4 if selection == "sparse" else 16) for t in range(50)]] * 2
    judged = layer.index_mask.any(-1)
    assert_close(layer.attention_mass.sum(-1), judged.float())
    assert (layer.attention_mass[~layer.index_mask] == 0).all()
    assert [layer.index_scores is None for layer in trace.layers] == [True, False, True, True]
    layer.index_scores.square().sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is not None} == {n for n, _ in model.indexer_parameters()}


@torch.no_grad()
def test_in_bf16_it_is_close_to_fp32() -> None:
    """Dense and without experts, so that no choice falls otherwise."""
    model, low = build(small().but(experts=None)), build(small().but(experts=None))
    for name, parameter in low.named_parameters():
        if not model.keep_fp32(name):
            parameter.data = parameter.data.bfloat16()
    assert {n.rsplit(".", 1)[-1] for n, p in low.named_parameters() if p.dtype == torch.float32} >= {"sinks", "ape"}
    tokens, cache = random_tokens(1, 60), low.new_cache(1)
    expected = model(tokens, selection="dense").logits
    parts = [low(part, cache=cache, selection="dense").logits for part in tokens.split([31, 1, 28], dim=1)]
    for logits in (low(tokens, selection="dense").logits, torch.cat(parts, dim=1)):
        assert (logits - expected).abs().mean() < 0.03 * expected.std()
    kinds = {name: cache.layers[1]["attention"].read(name).dtype for name in ("entry", "index_key")}
    assert set(kinds.values()) == {torch.bfloat16}
    assert cache.layers[1]["attention"].before("entry_offer", 5).dtype == torch.float32


def test_bf16_with_all_parts_trains() -> None:
    model = build(small()).bfloat16()
    out = model.train_forward(Batch.from_tokens(random_tokens(2, 50)), Trace(attention_mass=True))
    sum(model.logits(y).logsumexp(-1).mean() for y in (out.hidden, *out.mtp_hidden)).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("mode", ["dense", "indexer", "sparse"])
def test_every_mode_of_training(mode: str) -> None:
    """Packed documents and multi-token prediction: what a mode trains has a gradient, nothing else has, and its loss falls."""
    model, tokens = build(small()), random_tokens(3, LENGTH)
    set_mode(model, mode)
    indexers = {name for name, _ in model.indexer_parameters()}
    others = {name for name, _ in model.named_parameters()} - indexers
    wanted = {"dense": others, "indexer": indexers, "sparse": others | indexers}[mode]
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=5e-3)
    losses = []
    for _ in range(6):
        losses.append(accumulate(model, RowBatch(tokens, DOCUMENTS), mode, 0.3, micro=2).terms["loss"])
        assert {name for name, p in model.named_parameters() if p.grad is not None} == wanted
        assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] * 0.98


@pytest.mark.parametrize("mode", ["indexer", "sparse"])
def test_training_on_documents_shorter_than_a_block(mode: str) -> None:
    """There is no block to choose, in one part of the batch or in all of it."""
    model, tokens, short = build(small()), random_tokens(2, 41), torch.arange(41).expand(2, 41) // 2
    set_mode(model, mode)
    outcome = accumulate(model, RowBatch(tokens, short), mode, 0.3, micro=1)
    assert outcome.terms["indexer_kl"] == 0 and not outcome.dead
    assert all(p.grad is None for _, p in model.indexer_parameters())
    mixed = torch.stack([short[0], torch.zeros(41, dtype=torch.long)])
    assert accumulate(model, RowBatch(tokens, mixed), mode, 0.3, micro=1).terms["indexer_kl"] > 0


@torch.no_grad()
def test_multi_token_prediction_goes_on_from_the_streams() -> None:
    """X'_k = W_e RMSNorm_e(Emb) + W_h RMSNorm_h(X_k), with a collapse and a norm of its own."""
    model, seen = build(small()), {}
    mtp, d = model.mtp[0], 22
    model.collapse.register_forward_hook(lambda _, args, out: seen.setdefault("streams", args[0]))
    mtp.layer.register_forward_hook(lambda _, args, out: seen.update(given=args[0], out=out))
    tokens = random_tokens(1, 30)
    out = model.train_forward(Batch.from_tokens(tokens))
    norm = lambda x, w: F.rms_norm(x, (d,), w, 1e-6)  # noqa: E731
    token = norm(model.embed(tokens[0, 1:]), mtp.enorm.weight) @ mtp.eh_proj.weight[:, :d].T
    state = norm(seen["streams"][:-1], mtp.hnorm.weight) @ mtp.eh_proj.weight[:, d:].T
    assert_close(seen["given"][:-1], token[:, None] + state)
    assert_close(out.mtp_hidden[0], norm(mtp.collapse(seen["out"]), mtp.norm.weight))


def test_values_are_turned_back_so_that_only_distances_count() -> None:
    """All positions moved alike change nothing, in each kind of layer."""
    model = build(small())
    batch = Batch.from_tokens(random_tokens(2, 60))
    moved = dataclasses.replace(batch, positions=batch.positions + 57)
    with torch.no_grad():
        assert_close(model.trunk(moved), model.trunk(batch))
