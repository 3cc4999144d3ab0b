"""Residual streams around each block F: one plain stream, hyper-connections, or manifold-constrained ones (mHC).

All three speak of X [N, n, d]: `read` makes the block's input from the streams, `write` puts its output back.
"""

import torch
from torch import Tensor, nn

from fourfold.config import StreamsConfig
from fourfold.model.inputs import Context
from fourfold.ops.mixing import mix_weights
from fourfold.ops.sinkhorn import sinkhorn

Mix = tuple[Tensor, Tensor] | None  # post and comb, from `read` to `write`


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

    def weights(self, streams: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """pre [N, n], post [N, n], comb [N, n, n] (source, target), fp32."""
        n, config = self.config.hc_mult, self.config
        mixes = self.constrained_mixes(streams) if self.constrained else self.free_mixes(streams)
        bases = self.base.float().split([n, n, n * n])
        pre, post, comb = (m * s + b for m, s, b in zip(mixes, self.scale.float(), bases, strict=True))
        comb = comb.unflatten(-1, (n, n))
        if not self.constrained:
            return pre, post, comb
        mixing = sinkhorn(comb, config.hc_sinkhorn_iters, config.hc_eps)
        return pre.sigmoid() + config.hc_eps, 2 * post.sigmoid(), mixing

    def constrained_mixes(self, streams: Tensor) -> list[Tensor]:
        """Projections of all streams together, for pre, post and comb."""
        n = self.config.hc_mult
        return list(mix_weights(streams, self.fn.float(), self.eps).split([n, n, n * n], dim=-1))

    def free_mixes(self, streams: Tensor) -> list[Tensor]:
        """tanh of each stream's own projections: one for pre, one for post, one to every target."""
        each = mix_weights(streams.flatten(0, 1)[:, None], self.fn.float(), self.eps).tanh().unflatten(0, streams.shape[:2])
        return [each[..., 0], each[..., 1], each[..., 2:].flatten(1)]

    def read(self, streams: Tensor, context: Context) -> tuple[Tensor, Mix]:
        """y = Σ_k pre_k X_k [N, d], and what `write` needs."""
        pre, post, comb = self.weights(streams)
        if context.trace is not None:
            context.layer_trace.stream_mixing.append(comb.detach())
        return weighted_sum(pre, streams), (post, comb)

    def write(self, streams: Tensor, out: Tensor, mix: Mix) -> Tensor:
        """X'_k = post_k F + Σ_j comb[j, k] X_j."""
        assert mix is not None
        post, comb = mix
        mixed = torch.baddbmm(post[:, :, None] * out[:, None].float(), comb.transpose(1, 2), streams.float())
        return mixed.to(streams.dtype)


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
        mixes = mix_weights(streams, self.fn.float(), self.eps) * self.scale.float() + self.base.float()
        return weighted_sum(mixes.sigmoid() + self.config.hc_eps, streams)


def weighted_sum(weights: Tensor, streams: Tensor) -> Tensor:
    """Σ_k w_k X_k in fp32: weights [N, n], streams [N, n, d] -> [N, d]. Rounded weights would no longer sum to one."""
    return torch.bmm(weights[:, None], streams.float())[:, 0].to(streams.dtype)


def build_site(hidden: int, config: StreamsConfig | None, eps: float, site: int) -> PlainResidual | HyperConnections:
    return PlainResidual() if config is None else HyperConnections(hidden, config, eps, site)
