"""Which way something moves over a plain ground, measured from pixels alone.

The ground is the median colour of the border over the whole clip; what differs from it has weight by how much. The way is that of
the line through the weights' centres (least squares over time), its angle rounded to one of eight.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

SIDES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}  # x to the right, y downwards
WAYS = ("left", "right", "up", "down", "up left", "up right", "down left", "down right")
NOISE = 0.3  # of the largest difference from the ground: less is not the thing that moves
STILL = 0.25  # pixels a frame: slower is no motion


def way(clip: Tensor) -> str | None:
    """One of `WAYS` for a clip uint8 [F, 3, H, W]; None where nothing moves."""
    speed = velocity(clip)
    if speed.norm() < STILL:
        return None
    towards = F.normalize(torch.tensor([_vector(name) for name in WAYS], dtype=torch.float64), dim=1)
    return WAYS[int((towards @ speed).argmax())]


def region(clip: Tensor, frame: int) -> str:
    """In which of nine parts of a frame the thing that moves stands: "top left", "right", "middle"."""
    height, width = clip.shape[-2:]
    x, y = centre(clip)[frame].tolist()
    row, column = (("top", "", "bottom")[_third(y, height)], ("left", "", "right")[_third(x, width)])
    return " ".join(filter(None, (row, column))) or "middle"


def velocity(clip: Tensor) -> Tensor:
    """Pixels a frame to the right and downwards, fp64 [2]."""
    centres = centre(clip)
    times = torch.arange(len(clip), dtype=torch.float64)
    times -= times.mean()
    return times @ (centres - centres.mean(0)) / max(times.square().sum().item(), 1.0)


def centre(clip: Tensor) -> Tensor:
    """Where the middle of what is not ground stands in each frame, x and y, fp64 [F, 2]."""
    pixels = clip.double()
    border = torch.cat([pixels[..., 0, :], pixels[..., -1, :], pixels[..., 0], pixels[..., -1]], -1)  # [F, 3, ...]
    ground = border.transpose(0, 1).flatten(1).median(1).values
    away = (pixels - ground[:, None, None]).abs().sum(1)  # [F, H, W]
    weights = (away - NOISE * away.max()).clamp(min=0)
    height, width = weights.shape[1:]
    mass = weights.sum((1, 2)).clamp(min=1e-9)
    x = (weights.sum(1) @ torch.arange(width, dtype=torch.float64)) / mass
    y = (weights.sum(2) @ torch.arange(height, dtype=torch.float64)) / mass
    return torch.stack([x, y], 1)


def _third(place: float, length: int) -> int:
    """0, 1 or 2: in which third of a side the middle of a pixel lies."""
    return min(int(3 * (place + 0.5) / length), 2)


def _vector(name: str) -> tuple[float, float]:
    """Of "up left": one step along each axis that is named."""
    steps = [SIDES[word] for word in name.split()]
    return float(sum(x for x, _ in steps)), float(sum(y for _, y in steps))
