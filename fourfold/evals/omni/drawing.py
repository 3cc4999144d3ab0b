"""The codec without a model: real pictures and clips that go through it, and drawings by frequency alone."""

import torch
from torch import Tensor

from fourfold.media.codec import Codec

FRAMES_AT_ONCE = 128
BASELINE = "codes drawn by how often they stand at their place"


@torch.inference_mode()
def coded(codec: Codec, clips: Tensor) -> Tensor:
    """uint8 [N, F, 3, H, W] -> codes [N, F, rows, columns]."""
    return torch.cat([codec.encode(part.float() / 255) for part in clips.split(_at_once(clips))])


@torch.inference_mode()
def painted(codec: Codec, codes: Tensor) -> Tensor:
    """codes [N, F, rows, columns] -> uint8 [N, F, 3, H, W]."""
    parts = (codec.decode(part).clamp(0, 1) for part in codes.split(_at_once(codes)))
    return torch.cat([(part * 255).round().to(torch.uint8) for part in parts])


def through(codec: Codec, clips: Tensor) -> Tensor:
    """uint8 [N, F, 3, H, W], as they come out of the codec."""
    return painted(codec, coded(codec, clips))


def by_frequency(codec: Codec, clips: Tensor, count: int) -> Tensor:
    """`count` drawings, uint8 [count, F, 3, H, W]; every code is drawn for itself, from those that the clips have at its place."""
    codes, generator = coded(codec, clips), torch.Generator().manual_seed(0)
    rows = torch.randint(len(codes), (count, codes[0].numel()), generator=generator)
    return painted(codec, codes.flatten(1).gather(0, rows).unflatten(1, codes.shape[1:]))


def _at_once(clips: Tensor) -> int:
    return max(1, FRAMES_AT_ONCE // clips.shape[1])
