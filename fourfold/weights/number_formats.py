"""Number formats of published weights, decoded: fp8 in blocks that share a scale, fp4 in runs of 32, scales that are powers of two.

Codes become fp32, are multiplied by their scale there, and are rounded once, to the format asked for. A few rows at a time, so that
nothing of the size of the tensor but the result is held.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = (128, 128)  # rows and columns of fp8 that share a scale (V3; section 1.6 of its README_WEIGHTS)
RUN = 32  # fp4 codes of a row that share a scale (V4, as in the MX formats)
ROWS = 128  # decoded at once

# e8m0: a bare exponent of bias 127; the last code is no number. The first, 2**-127, is subnormal in fp32 and exact all the same.
E8M0 = torch.tensor([2.0 ** (code - 127) for code in range(255)] + [torch.nan])
# e2m1: a sign, two bits of exponent (bias 1), one of mantissa
E2M1 = torch.tensor([sign * size for sign in (1.0, -1.0) for size in (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)])
_PAIRS = torch.stack([E2M1.repeat(16), E2M1.repeat_interleave(16)], dim=1)  # [256, 2]: what a byte means, low nibble first


def blocks(size: int, block: int) -> int:
    """Blocks that cover `size`, the last one perhaps in part."""
    return -(-size // block)


def scales(stored: Tensor) -> Tensor:
    """Scales in fp32; bytes are e8m0 exponents."""
    if stored.dtype in (torch.float8_e8m0fnu, torch.uint8):
        return F.embedding(stored.view(torch.uint8).int(), E8M0[:, None])[..., 0]
    return stored.float()


def decode_fp8(codes: Tensor, scale: Tensor, block: tuple[int, int] = BLOCK, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """e4m3 codes [o, i] times the scale of their block, [⌈o / rows⌉, ⌈i / columns⌉] (V3 calls it `scale_inv`; it is multiplied)."""
    rows, columns = block
    out = torch.empty(codes.shape, dtype=dtype)
    for band, factors in enumerate(scales(scale)):
        part = slice(band * rows, (band + 1) * rows)
        out[part] = codes[part].float() * factors.repeat_interleave(columns)[: codes.shape[1]]
    return out


def decode_fp4(codes: Tensor, scale: Tensor, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """e2m1 codes, two a byte [o, i / 2], times the scale of their run [o, ⌈i / 32⌉] -> [o, i]."""
    width = 2 * codes.shape[1]
    out = torch.empty(codes.shape[0], width, dtype=dtype)
    for part in (slice(start, start + ROWS) for start in range(0, len(codes), ROWS)):
        values = F.embedding(codes[part].view(torch.uint8).int(), _PAIRS).flatten(1)
        out[part] = values * scales(scale[part]).repeat_interleave(RUN, dim=1)[:, :width]
    return out
