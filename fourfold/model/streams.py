"""Residual streams around each block F: one plain stream, hyper-connections, or manifold-constrained ones (mHC).

All three speak of X [N, n, d]: `read` makes the block's input from the streams, `write` puts its output back.
"""

import torch
from torch import Tensor, nn

from fourfold.config import StreamsConfig
from fourfold.model.inputs import Context
from fourfold.ops import streams as ops

Mix = tuple[Tensor, Tensor, Tensor] | None  # post, comb and the streams, from `read` to `write`


class PlainResidual(nn.Module):
    """X ← X + F(X), n = 1."""

    def read(self, streams: Tensor, context: Context) -> tuple[Tensor, Mix]:
        return streams[:, 0], None

    def write(self, streams: Tensor, out: Tensor, mix: Mix) -> Tensor:
        return streams + out[:, None]


class HyperConnections(nn.Module):
    """One site (attention or feed-forward) of hyper-connections with n streams.

    `mhc` in the released V4 parametrisation (2512.24880, equations 7-9): fn [(2+n)n, n·d], base and scale in fp32, in the order
    pre, post, comb; comb[source, target] is nearly doubly stochastic. `hc` is unconstrained (2409.19606, in the notation of
    2512.24880, equation 5): fn [2+n, d] looks at each stream by itself, and tanh bounds what it adds to the static weights.
    """

    def __init__(self, hidden: int, config: StreamsConfig, eps: float, site: int) -> None:
        super().__init__()
        n = config.hc_mult
        self.config, self.eps, self.site = config, eps, site
        self.constrained = config.hc_kind == "mhc"
        self.fn = nn.Parameter(torch.empty((2 + n) * n, n * hidden) if self.constrained else torch.empty(2 + n, hidden))
        self.base = nn.Parameter(torch.empty((2 + n) * n))
        self.scale = nn.Parameter(torch.empty(3))

    def reset(self) -> None:
        """Start near the plain residual: read mostly one stream (another at each site), keep most of each stream in place.

        `fn` is drawn like any matrix; the small scale lets it matter little at first.
        """
        n = self.config.hc_mult
        own = torch.eye(n)[self.site % n]
        if self.constrained:  # through σ, 2σ and Sinkhorn: pre 0.62 or 0.12, post 1, comb diagonal about 0.7
            static = [-2.0 + 2.5 * own, torch.zeros(n), 2.0 * torch.eye(n).flatten()]
        else:
            static = [own, torch.ones(n), torch.eye(n).flatten()]
        with torch.no_grad():
            self.base.copy_(torch.cat(static))
            self.scale.fill_(0.01)

    def read(self, streams: Tensor, context: Context) -> tuple[Tensor, Mix]:
        """y = Σ_k pre_k X_k [N, d], and what `write` needs."""
        y, post, comb, streams = self.weighed(streams)
        if context.trace is not None:
            context.layer_trace.stream_mixing.append(comb.detach())
        return y, (post, comb, streams)

    def weighed(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """y, post and comb as above, and the streams that `write` is to start from."""
        if self.constrained:
            return ops.read(streams, *self.parameters_fp32(), self.config.hc_sinkhorn_iters, self.config.hc_eps, self.eps)
        pre, post, comb = self.free_weights(streams)
        return ops.weighted_sum(pre, streams), post, comb, streams

    def parameters_fp32(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.fn.float(), self.base.float(), self.scale.float()

    def free_weights(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pre [N, n], post [N, n], comb [N, n, n] in fp32: static weights and tanh of each stream's own projections."""
        n = self.config.hc_mult
        fn, base, scale = self.parameters_fp32()
        each = ops.mix_weights(streams.flatten(0, 1)[:, None], fn, self.eps).tanh().unflatten(0, streams.shape[:2])
        mixes = each[..., 0], each[..., 1], each[..., 2:].flatten(1)  # one for pre, one for post, one to every target
        pre, post, comb = (m * s + b for m, s, b in zip(mixes, scale, base.split([n, n, n * n]), strict=True))
        return pre, post, comb.unflatten(-1, (n, n))

    def write(self, streams: Tensor, out: Tensor, mix: Mix) -> Tensor:
        """X'_k = post_k F + Σ_j comb[j, k] X_j."""
        assert mix is not None
        post, comb, streams = mix  # as `read` gave them back: their gradients meet there
        return ops.write(streams, out, post, comb)


class Collapse(nn.Module):
    """The last read, before the final norm: weights from a projection of its own (`hc_head_*` in V4), or stream 0 alone."""

    def __init__(self, hidden: int, config: StreamsConfig | None, eps: float) -> None:
        super().__init__()
        self.config, self.eps = config, eps
        if config is not None:
            n = config.hc_mult
            self.fn = nn.Parameter(torch.empty(n, n * hidden))
            self.base = nn.Parameter(torch.empty(n))
            self.scale = nn.Parameter(torch.empty(1))

    def reset(self) -> None:
        """Start with every stream read alike."""
        if self.config is None:
            return
        n = self.config.hc_mult
        with torch.no_grad():
            self.base.fill_(-torch.log(torch.tensor(n - 1.0)) if n > 1 else 4.0)
            self.scale.fill_(0.01)

    def forward(self, streams: Tensor) -> Tensor:
        """X [N, n, d] -> [N, d]."""
        if self.config is None:
            return streams[:, 0]
        mixes = ops.mix_weights(streams, self.fn, self.eps) * self.scale.float() + self.base.float()
        return ops.weighted_sum(mixes.sigmoid() + self.config.hc_eps, streams)


def build_site(hidden: int, config: StreamsConfig | None, eps: float, site: int) -> PlainResidual | HyperConnections:
    return PlainResidual() if config is None else HyperConnections(hidden, config, eps, site)
