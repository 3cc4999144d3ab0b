"""Finite scalar quantisation (2309.15505): a few numbers, each rounded to one of a few levels; the codebook is their grid.

No codebook is learned, so none can collapse. With levels (8, 5, 5, 5) four numbers make one of 1,000 codes.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

MARGIN = 1e-3  # how far beyond the outermost levels the bound lies, so that a finite number reaches them


class FiniteScalarQuantiser(nn.Module):
    """Vectors [..., d] to codes [...] and back, with as many levels in each of the d channels as `levels` says.

    Code = sum over i of digit_i · (L_0 ... L_{i-1}), the first channel fastest; digit i in 0 .. L_i - 1 stands for the number
    (digit_i - floor(L_i / 2)) / floor(L_i / 2), so a channel's numbers lie in -1 .. 1. It has no parameters.
    """

    levels: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        steps = [math.prod(levels[:place]) for place in range(len(levels))]
        self.register_buffer("levels", torch.tensor(levels), persistent=False)
        self.register_buffer("basis", torch.tensor(steps), persistent=False)
        self.codes = math.prod(levels)

    def bound(self, vectors: Tensor) -> Tensor:
        """f of section 3.1 and its appendix: tanh stretched over the levels.

        An even number of levels has no middle one: it is moved half a level down, and its argument so that 0 stays 0.
        """
        half = (self.levels - 1) * (1 + MARGIN) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.tanh(vectors + torch.atanh(offset / half)) * half - offset

    def quantise(self, vectors: Tensor) -> Tensor:
        """The nearest level of every number, scaled to -1 .. 1; the gradient passes the rounding as if it were not there."""
        bounded = self.bound(vectors)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self.levels // 2)

    def encode(self, vectors: Tensor) -> Tensor:
        """Codes, int64 [...], of vectors [..., d] that are not yet bounded."""
        digits = self.bound(vectors).round().long() + self.levels // 2
        return (digits * self.basis).sum(-1)

    def decode(self, codes: Tensor) -> Tensor:
        """The vectors [..., d], as `quantise` gives them, of codes [...]."""
        digits = codes[..., None] // self.basis % self.levels
        return (digits - self.levels // 2) / (self.levels // 2)
