"""A site of manifold-constrained hyper-connections (2512.24880, equations 7-9; released V4 code): read and write of n streams.

From streams X [N, n, d], with u = vec(X), one projection m = (fn · u) · rsqrt(mean(u²) + eps) gives the weights of a site:
pre = σ(..) + hc_eps reads, post = 2σ(..) writes, and comb = Sinkhorn(..) mixes, all in fp32. The root mean square divides after
the projection and has no weight of its own.
"""

from typing import Any

import torch
from torch import Tensor

from fourfold.ops import native
from fourfold.ops.sinkhorn import sinkhorn, sinkhorn_definition

COUNTS = (2, 4)  # streams for which there are kernels


def mix_weights(streams: Tensor, fn: Tensor, eps: float) -> Tensor:
    """Raw projections: streams [N, n, d], fn [m, n·d] -> fp32 [N, m]."""
    flat = streams.flatten(1).float()
    return (flat @ fn.float().T) * torch.rsqrt(flat.square().mean(-1, keepdim=True) + eps)


def weighted_sum(weights: Tensor, streams: Tensor) -> Tensor:
    """Σ_k w_k X_k in fp32: weights [N, n], streams [N, n, d] -> [N, d]. Rounded weights would no longer sum to one."""
    return torch.bmm(weights[:, None], streams.float())[:, 0].to(streams.dtype)


def site_weights(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, iterations: int, hc_eps: float, eps: float, plain: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    """pre [N, n], post [N, n], comb [N, n, n] (source, target), fp32. fn [(2+n)n, n·d], base and scale [3] in that order."""
    n = streams.shape[1]
    sizes = [n, n, n * n]
    mixes = mix_weights(streams, fn, eps).split(sizes, dim=-1)
    pre, post, comb = (m * s + b for m, s, b in zip(mixes, scale.float(), base.float().split(sizes), strict=True))
    normalise = sinkhorn_definition if plain else sinkhorn
    return pre.sigmoid() + hc_eps, 2 * post.sigmoid(), normalise(comb.unflatten(-1, (n, n)), iterations, hc_eps)


def read_definition(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, iterations: int, hc_eps: float, eps: float, plain: bool = True
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """y = Σ_k pre_k X_k [N, d]; post [N, n] and comb [N, n, n] for `write`, and the streams to be given to it."""
    pre, post, comb = site_weights(streams, fn, base, scale, iterations, hc_eps, eps, plain)
    return weighted_sum(pre, streams), post, comb, streams


def write_definition(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """X'_k = post_k F + Σ_j comb[j, k] X_j: streams [N, n, d], the block's output F [N, d]."""
    mixed = torch.baddbmm(post[:, :, None] * out[:, None].float(), comb.transpose(1, 2), streams.float())
    return mixed.to(streams.dtype)


class _Read(torch.autograd.Function):
    """The streams come out again, so that what arrives for them in `write` is added here and not in a pass of its own.

    Only the projections are kept; weights and Sinkhorn are worked out once more in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, iterations: int, hc_eps: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        streams, fn, base, scale = (t.contiguous() for t in (streams, fn, base, scale))
        y, post, comb, mixes, r = _read(streams, fn, base, scale, iterations, hc_eps, eps)
        ctx.save_for_backward(streams, fn, base, scale, mixes, r)
        ctx.sizes = len(streams), streams.shape[2], iterations, float(hc_eps)
        return y, post, comb, streams.view_as(streams)

    @staticmethod
    def backward(ctx: Any, *arriving: Tensor) -> tuple:
        streams, fn, base, scale, mixes, r = ctx.saved_tensors
        streams_grad = torch.empty_like(streams)
        m, n = len(fn), streams.shape[1]
        parts = base.new_zeros(torch.get_num_threads(), fn.numel() + m + 3)
        arriving = [grad.contiguous() for grad in arriving]  # for y, post, comb and the streams
        name, saved = f"streams_read_backward_{n}", (streams, fn, base, scale, mixes, r)
        native.call(name, streams.dtype, *saved, *arriving, streams_grad, parts, len(parts), *ctx.sizes)
        fn_grad, base_grad, scale_grad = parts.sum(0).split([fn.numel(), m, 3])
        fn_grad = fn_grad.view(-1, m, native.LANES).transpose(0, 1).reshape(fn.shape)  # packed as in the kernel
        return streams_grad, fn_grad, base_grad, scale_grad, None, None, None


class _Write(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
        streams, out, post, comb = (t.contiguous() for t in (streams, out, post, comb))
        ctx.save_for_backward(streams, out, post, comb)
        return _write(streams, out, post, comb)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        streams = ctx.saved_tensors[0]
        tokens, n, d = streams.shape
        grads = tuple(torch.empty_like(t) for t in ctx.saved_tensors)
        name = f"streams_write_backward_{n}"
        native.call(name, streams.dtype, *ctx.saved_tensors, grad.contiguous(), *grads, tokens, d)
        return grads


def _read(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, iterations: int, hc_eps: float, eps: float
) -> tuple[Tensor, ...]:
    """y, post, comb, and for the backward pass the projections [N, m] and what the root mean square made of 1 [N]."""
    tokens, n, d = streams.shape
    y = streams.new_empty(tokens, d)
    mixes, r, post, comb = (base.new_empty(tokens, *size) for size in ((len(fn),), (), (n,), (n, n)))
    sizes = tokens, d, iterations, float(hc_eps), float(eps)
    native.call(f"streams_read_forward_{n}", streams.dtype, streams, fn, base, scale, y, mixes, r, post, comb, *sizes)
    return y, post, comb, mixes, r


def _write(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    written = torch.empty_like(streams)
    sizes = len(streams), streams.shape[2]
    native.call(f"streams_write_forward_{streams.shape[1]}", streams.dtype, streams, out, post, comb, written, *sizes)
    return written


def read(
    streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, iterations: int, hc_eps: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`read_definition` in one pass over the streams where there are kernels."""
    if has_kernels(streams) and native.ready(fn, base, scale) and fn.dtype == torch.float32:
        if torch.is_grad_enabled():
            return _Read.apply(streams, fn, base, scale, iterations, hc_eps, eps)
        streams, fn, base, scale = (t.contiguous() for t in (streams, fn, base, scale))
        return *_read(streams, fn, base, scale, iterations, hc_eps, eps)[:3], streams
    return read_definition(streams, fn, base, scale, iterations, hc_eps, eps, plain=False)


def write(streams: Tensor, out: Tensor, post: Tensor, comb: Tensor) -> Tensor:
    """`write_definition` in one pass over the streams where there are kernels."""
    if has_kernels(streams) and native.ready(streams, out) and native.ready(post, comb) and post.dtype == torch.float32:
        if torch.is_grad_enabled():
            return _Write.apply(streams, out, post, comb)
        return _write(*(t.contiguous() for t in (streams, out, post, comb)))
    return write_definition(streams, out, post, comb)


def has_kernels(streams: Tensor) -> bool:
    """Streams are read in whole vectors, and the number of streams is fixed in the kernels."""
    return streams.shape[1] in COUNTS and streams.shape[2] % native.LANES == 0 and native.ready(streams)
