"""What the codec is made of: blocks that mix the neighbours within a frame and read the frames before it.

Activations are [B, F, H, W, C], which is how convolutions and matrix products are fastest on a processor.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    """A 3 x 3 convolution within each frame of [B, F, H, W, C], zeros around it. Its weight [out, 3 · 3 · in] is one matrix."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, 9 * inputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight.unflatten(1, (3, 3, -1)).permute(0, 3, 1, 2)  # channels last, as it lies
        frames = F.conv2d(x.flatten(0, 1).permute(0, 3, 1, 2), weight, self.bias, padding=1)
        return frames.permute(0, 2, 3, 1).unflatten(0, x.shape[:2])


class Block(nn.Module):
    """x + out(silu(mix(x) + past(x of `reach` frames before))), the past of the first frames being zero."""

    def __init__(self, width: int, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.mix, self.past, self.out = Conv(width, width), nn.Linear(width, width, bias=False), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.mix(x)
        if x.shape[1] > self.reach:
            hidden = hidden + F.pad(self.past(x[:, : -self.reach]), (0, 0, 0, 0, 0, 0, self.reach, 0))
        return x + self.out(F.silu(hidden))


class Fold(nn.Module):
    """[B, F, H, W, C] -> [B, F, H / side, W / side, side · side · C]"""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(3, (-1, self.side)).unflatten(2, (-1, self.side)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4)


class Unfold(nn.Module):
    """The inverse of `Fold`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        return x.unflatten(4, (self.side, self.side, -1)).permute(0, 1, 2, 4, 3, 5, 6).flatten(4, 5).flatten(2, 3)
