"""The one matrix product of the model: x Wᵀ, whatever form W is kept in."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.ops import native

FEW = 16  # rows for which our own kernel is faster than the library's, which is made for many


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., i] times `weight` [o, i] -> [..., o]. A packed weight brings `matmul(x)` and `dense()`, as `dense` below."""
    if not isinstance(weight, Tensor):
        product = weight.matmul(x)
    elif _is_decoding(x, weight):
        product = x.new_empty(*x.shape[:-1], len(weight))
        native.call("linear_few", x.dtype, x.contiguous(), weight, product, x.numel() // weight.shape[1], *weight.shape)
    else:
        return F.linear(x, weight, bias)
    return product if bias is None else product + bias


def _is_decoding(x: Tensor, weight: Tensor) -> bool:
    """Whether there are few rows, no gradients, and a kernel (which checks no widths itself)."""
    width = weight.shape[-1]
    if x.shape[-1] != width or torch.is_grad_enabled() or not 0 < x.numel() <= FEW * width or width % native.LANES:
        return False
    return weight.is_contiguous() and native.ready(x, weight)


def dense(weight: Tensor) -> Tensor:
    """The plain [o, i] of a weight, for where it is no plain product (latent attention's absorbed form)."""
    return weight if isinstance(weight, Tensor) else weight.dense()


class Linear(nn.Module):
    """A weight [o, i] (and bias [o]) applied through `linear`."""

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))
        self.bias = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)
