"""INT8 weights: a byte for each weight and a scale for each output, ŵ[o, i] = code[o, i] · scale[o], the largest code being ±127.

Inputs become whole numbers too, but of two bytes, so that the kernel multiplies bytes alone: one would do for speed, but it is
coarser than the weights, and turns the last bits of a sum into steps of a hundredth, so that a sequence among others would no
longer be close to itself alone. A row becomes whole numbers by itself: what comes out of it does not depend on its neighbours.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.ops import native

OUTPUTS, INPUTS = 16, 4  # whose codes lie side by side, as the kernel takes them
MOST, MOST_INPUT = 127, 127 * 256  # of a code, and of an input's two bytes
RAISED = 128  # added to the codes as they are kept: processors multiply unsigned by signed bytes


class Int8Weight(nn.Module):
    """A weight [o, i] in int8, to stand where `linear` expects a weight; it is not trained.

    packed uint8 [⌈o / 16⌉, i / 4, 16, 4]: the codes, raised; scales fp32 [o].
    """

    packed: Tensor
    scales: Tensor

    def __init__(self, weight: Tensor) -> None:
        """weight [o, i], i a multiple of INPUTS."""
        super().__init__()
        codes, scales = coded(weight.detach(), MOST)
        rows = F.pad(codes + RAISED, (0, 0, 0, -len(codes) % OUTPUTS)).to(torch.uint8)
        self.shape = torch.Size(weight.shape)
        self.register_buffer("packed", rows.unflatten(0, (-1, OUTPUTS)).unflatten(-1, (-1, INPUTS)).transpose(1, 2).contiguous())
        self.register_buffer("scales", scales[:, 0].contiguous())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Weight":
        """Where the model is moved or cast: the scales stay fp32."""
        self.packed = fn(self.packed)
        self.scales = self.scales.to(self.packed.device)
        return self

    def dense(self) -> Tensor:
        """ŵ [o, i] in fp32."""
        codes = self.packed.transpose(1, 2).flatten(2).flatten(0, 1)[: self.shape[0]]
        return (codes.float() - RAISED) * self.scales[:, None]

    def matmul(self, x: Tensor) -> Tensor:
        """x [..., i] -> x ŵᵀ [..., o] in the format of x."""
        if not native.ready(x) or x.shape[-1] != self.shape[1]:  # the kernel checks no widths
            return int8_product_definition(x, self.dense())
        x, (outputs, width) = x.contiguous(), self.shape
        out, rows = x.new_empty(*x.shape[:-1], outputs), x.numel() // width
        native.call("linear_int8", x.dtype, x, self.packed, self.scales, out, rows, outputs, width)
        return out


def coded(x: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """x [..., i] -> whole numbers [..., i] and scales [..., 1], fp32, the largest of each i becoming ±most."""
    largest = x.float().abs().amax(-1, keepdim=True)
    return (x.float() * torch.where(largest > 0, most / largest, 0)).round(), largest / most


def int8_product_definition(x: Tensor, weight: Tensor) -> Tensor:
    """What `Int8Weight.matmul` means, ŵ [o, i] being `dense()`: each row as whole numbers of two bytes, all else in fp32."""
    codes, scales = coded(x, MOST_INPUT)
    return F.linear(codes * scales, weight).to(x.dtype)
