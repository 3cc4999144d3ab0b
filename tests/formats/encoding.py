"""Weights to fp8 and fp4 codes with their scales, to make quantised folders for tests."""

import torch
from torch import Tensor

from fourfold.weights.number_formats import E2M1


def fp8(weight: Tensor, block: tuple[int, int] = (128, 128), powers: bool = False) -> tuple[Tensor, Tensor]:
    """e4m3 codes and the scale of each block: fp32, or with `powers` e8m0 exponents, as published checkpoints have them."""
    high, wide = block
    bands = [band.split(wide, dim=1) for band in weight.float().split(high)]
    largest = torch.tensor([[part.abs().max() for part in band] for band in bands]).clamp(min=1e-12) / 448
    if powers:
        exponents = largest.log2().ceil()
        largest, stored = exponents.exp2(), (exponents + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
    else:
        stored = largest
    spread = largest.repeat_interleave(high, 0).repeat_interleave(wide, 1)[: weight.shape[0], : weight.shape[1]]
    return (weight.float() / spread).to(torch.float8_e4m3fn), stored


def fp4(weight: Tensor) -> tuple[Tensor, Tensor]:
    """e2m1 codes, two an int8 with the low nibble first, and e8m0 exponents for runs of 32 of a row; both widths even multiples."""
    runs = weight.float().unflatten(1, (-1, 32))
    exponents = (runs.abs().amax(-1).clamp(min=1e-12) / 6).log2().ceil()
    codes = (runs / exponents.exp2()[..., None]).flatten(1)[..., None].sub(E2M1).abs().argmin(-1).to(torch.uint8)
    packed = codes[:, 0::2] | codes[:, 1::2] << 4
    return packed.view(torch.int8), (exponents + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
