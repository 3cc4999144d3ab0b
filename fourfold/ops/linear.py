"""The one matrix product of the model: x Wᵀ, whatever form W is kept in."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`x` [..., i] times `weight` [o, i] -> [..., o]. A packed weight brings `matmul(x)` and `dense()`, as `dense` below."""
    if isinstance(weight, Tensor):
        return F.linear(x, weight, bias)
    product = weight.matmul(x)
    return product if bias is None else product + bias


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
