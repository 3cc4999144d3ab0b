"""Turning pairs of channels by the angle of a position (2104.09864)."""

import torch
from torch import Tensor

from fourfold.ops import native


def rotate_definition(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """Turn x [N, ..., dim] by its token's angles, in fp32. Pairs are (2j, 2j+1) when interleaved, else (j, j + dim/2)."""
    shape = (cos.shape[0],) + (1,) * (x.dim() - 2) + (cos.shape[1],)
    cos, sin = cos.view(shape), sin.view(shape)
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, dim=-1)
    turned = (first * cos - second * sin).to(x.dtype), (first * sin + second * cos).to(x.dtype)
    return torch.stack(turned, dim=-1).flatten(-2) if interleaved else torch.cat(turned, dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    """`rotate_definition`, in one pass without gradients where there are kernels."""
    if torch.is_grad_enabled() or x.dim() not in (2, 3) or x.stride(-1) != 1 or not (native.ready(x) and native.ready(cos, sin)):
        return rotate_definition(x, cos, sin, interleaved)
    rows, heads, width = (len(x), 1, x.shape[1]) if x.dim() == 2 else x.shape
    out, cos, sin = x.new_empty(x.shape), cos.contiguous(), sin.contiguous()
    sizes = rows, heads, width // 2, x.stride(0), x.stride(1), int(interleaved)
    native.call("rotate", x.dtype, x, cos, sin, out, *sizes)
    return out
