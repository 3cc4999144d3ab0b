"""What a model draws: saved as files, and shown in half blocks where the terminal has 24-bit colour."""

import re
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

RESET = "\033[0m"
SUFFIXES = {"picture": ".png", "clip": ".gif"}


class Gallery:
    """Saves drawings in a folder as picture-0001.png, clip-0001.gif and so on; nothing there is replaced."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, pixels: "Tensor") -> Path:
        """Save uint8 [frames, 3, H, W]; says where. Raises FourfoldError when it cannot be written."""
        kind = "picture" if len(pixels) == 1 else "clip"
        names = self.folder.glob(f"{kind}-*") if self.folder.is_dir() else []
        numbers = [int(found[1]) for name in names if (found := re.match(r"[a-z]+-(\d+)\.", name.name))]
        path = self.folder / f"{kind}-{max(numbers, default=0) + 1:04d}{SUFFIXES[kind]}"
        write(pixels, path)
        return path


def write(pixels: "Tensor", path: Path) -> None:
    """uint8 [frames, 3, H, W] to a file, whole or not at all: one frame as a picture where the suffix allows it."""
    from fourfold.media.spans import FILM_RATE
    from fourfold.media.writing import PICTURES, write_clip, write_image

    if len(pixels) == 1 and path.suffix.lower() in PICTURES:
        write_image(pixels[0], path)
    else:
        write_clip(pixels, path, FILM_RATE)


def show(pixels: "Tensor") -> None:
    """A picture, or as many frames of a clip as stand side by side, on a terminal that can; else nothing."""
    from rich.console import Console

    console = Console(file=sys.stdout)
    if sys.stdout.isatty() and console.color_system == "truecolor" and not console.no_color:
        print(blocks(pixels, shutil.get_terminal_size().columns), flush=True)


def blocks(pixels: "Tensor", columns: int) -> str:
    """uint8 [frames, 3, H, W] as lines of half blocks, two rows of pixels each, at most `columns` wide."""
    import torch
    import torch.nn.functional as F

    from fourfold.media.images import fit

    frames = fit(pixels, max(columns, 2), 2) if pixels.shape[3] > columns else pixels
    count = max(1, min(len(frames), (columns + 1) // (frames.shape[3] + 1)))
    chosen = frames[torch.linspace(0, len(frames) - 1, count).round().long()]
    shown = F.pad(chosen, (0, 0, 0, chosen.shape[2] % 2))
    return "\n".join(" ".join(_line(*pair) for pair in row) for row in shown.unflatten(2, (-1, 2)).permute(2, 0, 3, 4, 1).tolist())


def _line(upper: list[list[int]], lower: list[list[int]]) -> str:
    """Two rows of pixels [W, 3]: the upper as ink, the lower as paper."""
    cells = (f"\033[38;2;{_colour(ink)};48;2;{_colour(paper)}m▀" for ink, paper in zip(upper, lower, strict=True))
    return "".join(cells) + RESET


def _colour(pixel: list[int]) -> str:
    return ";".join(map(str, pixel))
