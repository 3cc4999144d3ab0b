"""Residual streams against the released equations written out in NumPy, and the three kinds against each other."""

import math

import numpy as np
import pytest
import torch

from fourfold.config import StreamsConfig
from fourfold.model.streams import Collapse, HyperConnections
from fourfold.model.transformer import Transformer
from fourfold.ops.streams import site_weights
from tests.builders import base, build, everything, random_tokens, wide_latent
from tests.compare import assert_close

HIDDEN, NORM_EPS = 9, 1e-6


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def site(kind: str, n: int, hidden: int = HIDDEN) -> HyperConnections:
    made = HyperConnections(hidden, StreamsConfig(hc_kind=kind, hc_mult=n, hc_sinkhorn_iters=20), NORM_EPS, site=1)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def parameters(made: HyperConnections | Collapse) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return tuple(p.detach().double().numpy() for p in (made.fn, made.base, made.scale))


def mixes(fn: np.ndarray, x: np.ndarray) -> np.ndarray:
    """m = (fn · u) · rsqrt(mean(u²) + norm_eps), u = vec(X)."""
    u = x.reshape(-1)
    return fn @ u / math.sqrt((u**2).mean() + NORM_EPS)


def sinkhorn_by_hand(logits: np.ndarray, iterations: int, eps: float) -> np.ndarray:
    """C = softmax_rows + ε; C ← C / (colsum + ε); then (iterations - 1) times rows, columns."""
    n = len(logits)
    c = np.zeros((n, n))
    for j in range(n):
        c[j] = np.exp(logits[j] - logits[j].max())
        c[j] = c[j] / c[j].sum() + eps
    for step in range(iterations):
        if step:
            for j in range(n):
                c[j] /= c[j].sum() + eps
        for k in range(n):
            c[:, k] /= c[:, k].sum() + eps
    return c


@pytest.mark.parametrize("n", [1, 2, 3, 4])
@pytest.mark.parametrize("hidden", [HIDDEN, 16])  # for sixteen there are kernels
def test_mhc_is_the_released_form(n: int, hidden: int) -> None:
    made, streams, out = site("mhc", n, hidden), torch.randn(5, n, hidden), torch.randn(5, hidden)
    with torch.no_grad():
        y, mix = made.read(streams, _NoTrace())
        written = made.write(streams, out, mix)
    fn, base_, scale = parameters(made)
    for token in range(5):
        x, f = streams[token].double().numpy(), out[token].double().numpy()
        m = mixes(fn, x)
        pre = sigmoid(m[:n] * scale[0] + base_[:n]) + 1e-6
        post = 2 * sigmoid(m[n : 2 * n] * scale[1] + base_[n : 2 * n])
        c = sinkhorn_by_hand((m[2 * n :] * scale[2] + base_[2 * n :]).reshape(n, n), 20, 1e-6)
        assert_close(y[token], torch.tensor(sum(pre[k] * x[k] for k in range(n))), "read")
        for k in range(n):
            expected = post[k] * f + sum(c[j, k] * x[j] for j in range(n))  # first index: source
            assert_close(written[token, k], torch.tensor(expected), f"stream {k}")


@pytest.mark.parametrize("n", [1, 2, 4])
def test_hc_is_the_unconstrained_form(n: int) -> None:
    made, streams, out = site("hc", n), torch.randn(5, n, HIDDEN), torch.randn(5, HIDDEN)
    with torch.no_grad():
        y, mix = made.read(streams, _NoTrace())
        written = made.write(streams, out, mix)
    fn, base_, scale = parameters(made)
    for token in range(5):
        x, f = streams[token].double().numpy(), out[token].double().numpy()
        own = np.tanh([mixes(fn, stream) for stream in x])  # [n, 2 + n]: each stream by itself
        m = np.concatenate([own[:, 0], own[:, 1], own[:, 2:].reshape(-1)]) * np.repeat(scale, [n, n, n * n]) + base_
        c = m[2 * n :].reshape(n, n)  # source, target
        assert_close(y[token], torch.tensor(sum(m[k] * x[k] for k in range(n))), "read")
        expected = np.stack([m[n + k] * f + sum(c[j, k] * x[j] for j in range(n)) for k in range(n)])
        assert_close(written[token], torch.tensor(expected), "written")


@pytest.mark.parametrize("n", [1, 3])
def test_the_collapse_is_the_released_form(n: int) -> None:
    made, streams = Collapse(HIDDEN, StreamsConfig(hc_mult=n), NORM_EPS), torch.randn(5, n, HIDDEN)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    fn, base_, scale = parameters(made)
    for token in range(5):
        x = streams[token].double().numpy()
        pre = sigmoid(mixes(fn, x) * scale[0] + base_) + 1e-6
        assert_close(made(streams)[token], torch.tensor(sum(pre[k] * x[k] for k in range(n))))


def test_the_order_of_source_and_target() -> None:
    """A comb that moves stream 0 to 1, 1 to 2 and 2 to 0, and nothing read back."""
    made = HyperConnections(HIDDEN, StreamsConfig(hc_mult=3), NORM_EPS, site=0)
    with torch.no_grad():
        made.fn.zero_(), made.scale.zero_()
        made.base.copy_(torch.cat([torch.zeros(3), torch.full((3,), -60.0), 60.0 * torch.eye(3)[[1, 2, 0]].flatten()]))
    streams = torch.randn(2, 3, HIDDEN)
    _, mix = made.read(streams, _NoTrace())
    assert_close(made.write(streams, torch.randn(2, HIDDEN), mix), streams[:, [2, 0, 1]])


def test_one_mhc_stream_is_a_residual_with_a_gain_on_the_block() -> None:
    made, streams, out = site("mhc", 1), torch.randn(5, 1, HIDDEN), torch.randn(5, HIDDEN)
    _, mix = made.read(streams, _NoTrace())
    post, comb, same = mix
    assert torch.equal(same, streams)
    assert_close(comb, torch.ones(5, 1, 1))
    assert_close(made.write(streams, out, mix)[:, 0], streams[:, 0] + post * out)


@pytest.mark.parametrize("config", [wide_latent, base])
@pytest.mark.parametrize("n", [1, 3])
def test_plain_residual_is_hyper_connections_with_trivial_weights(config, n: int) -> None:
    """Read stream 0 and write everywhere: every stream is then a copy of the plain residual."""
    plain = build(config())
    streamed = build(config().but(streams=StreamsConfig(hc_kind="hc", hc_mult=n)))
    own = {name: p for name, p in plain.state_dict().items() if "engram" not in name}
    missing, unexpected = streamed.load_state_dict(own, strict=False)
    assert not unexpected
    with torch.no_grad():
        for module in streamed.modules():
            if isinstance(module, HyperConnections):
                module.fn.normal_(), module.scale.zero_()
                module.base.copy_(torch.cat([torch.eye(n)[0], torch.ones(n), torch.eye(n).flatten()]))
        streamed.collapse.scale.zero_()
        streamed.collapse.base.fill_(-60.0)[0] = 60.0
        for mine, theirs in zip(streamed.layers, plain.layers, strict=True):
            if mine.engram is not None:  # one gate a stream: make them all alike
                for name, parameter in theirs.engram.named_parameters():
                    wide = name.split(".")[0] in ("key_proj", "query_norm", "key_norm", "conv_norm", "conv")
                    axis = 1 if name == "conv" else 0
                    mine.engram.get_parameter(name).copy_(torch.cat([parameter] * n, axis) if wide else parameter)
        tokens = random_tokens(2, 50)
        assert_close(streamed(tokens).logits, plain(tokens).logits)
    assert all(any(part in name for part in ("_site", "collapse", "engram")) for name in missing)


def test_the_gain_of_mhc_over_depth_stays_bounded() -> None:
    """Products of the traced combs: columns sum to one, so no stream is ever more than a mean of streams."""
    from fourfold.model.trace import Trace

    model, trace = build(everything()), Trace()
    with torch.no_grad():
        model(random_tokens(2, 30), trace=trace)
    product = torch.eye(3).expand(60, 3, 3)
    sites = [comb for layer in trace.layers for comb in layer.stream_mixing]
    assert len(sites) == 2 * model.config.num_hidden_layers
    for comb in sites:
        product = product @ comb
        assert (product >= 0).all()
        assert (product.sum(1) - 1).abs().max() < 1e-4


class _NoTrace:
    """What a site needs of a context when nobody asked for a trace."""

    trace = None


@pytest.mark.parametrize(("n", "hidden"), [(3, HIDDEN), (4, 16)])
def test_mixing_is_in_fp32_whatever_the_streams_are(n: int, hidden: int) -> None:
    made = site("mhc", n, hidden)
    low = torch.randn(4, n, hidden).bfloat16()
    y, mix = made.read(low, _NoTrace())
    _, exact = made.read(low.float(), _NoTrace())
    weights = [site_weights(streams, made.fn, made.base, made.scale, 20, 1e-6, NORM_EPS) for streams in (low, low.float())]
    for mine, theirs in [*zip(mix[:2], exact[:2], strict=True), *zip(*weights, strict=True)]:
        assert mine.dtype == torch.float32
        assert torch.equal(mine, theirs)
    assert y.dtype == torch.bfloat16
    assert mix[2].dtype == torch.bfloat16
    assert made.write(low, y, mix).dtype == torch.bfloat16


def test_all_streams_take_part() -> None:
    """Every one of the three has a gradient from the logits, at every site."""
    model = build(everything())
    model(random_tokens(1, 30)).logits.square().mean().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if "_site.fn" in name or "collapse.fn" in name}
    assert len(grads) >= 2 * model.config.num_hidden_layers + 1
    for name, grad in grads.items():
        if not name.startswith("mtp."):
            assert (grad.unflatten(1, (3, -1)).abs().amax((0, 2)) > 0).all(), name


def test_embedding_is_copied_to_every_stream() -> None:
    model = build(everything().but(memory=None))
    seen = []
    model.layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    tokens = random_tokens(1, 6)
    with torch.no_grad():
        model(tokens)
    assert_close(seen[0], model.embed.weight[tokens[0]][:, None].expand(-1, 3, -1))
    assert isinstance(model, Transformer)
