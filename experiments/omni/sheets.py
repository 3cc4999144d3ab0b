"""Pictures side by side with words below them, as one PNG."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fourfold.files import atomic_file

GAP, LETTERS, LINE = 4, 10, 12  # pixels: between pictures, height of letters and of a line
WIDE = 5.2  # pixels of a letter, on average
COLOURS = 255


@dataclass(frozen=True)
class Cell:
    """Pictures uint8 [3, H, W] that stand next to each other, and the lines below them."""

    pictures: Sequence[Tensor]
    words: Sequence[str] = ()


def sheet(cells: Sequence[Cell], columns: int, side: int) -> Image.Image:
    """Cells row by row, every picture `side` pixels high and wide; lines that are too long go on in the next one."""
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    wide = max(len(cell.pictures) for cell in cells) * (side + GAP) + GAP
    lines = [[wrapped(cell.words, wide) for cell in row] for row in rows]
    heights = [side + 2 * GAP + LINE * max(map(len, row)) for row in lines]
    whole = Image.new("RGB", (wide * min(columns, len(cells)), sum(heights)), "white")
    pen, font, top = ImageDraw.Draw(whole), ImageFont.load_default(LETTERS), 0
    for row, said, height in zip(rows, lines, heights, strict=True):
        for column, (cell, own) in enumerate(zip(row, said, strict=True)):
            left = column * wide + GAP
            for place, picture in enumerate(cell.pictures):
                whole.paste(image(picture, side), (left + place * (side + GAP), top + GAP))
            pen.multiline_text((left, top + GAP + side), "\n".join(own), "black", font, spacing=LINE - LETTERS)
        top += height
    return whole


def wrapped(words: Sequence[str], wide: int) -> list[str]:
    return [line for said in words for line in textwrap.wrap(said, max(8, int(wide / WIDE))) or [""]]


def image(picture: Tensor, side: int) -> Image.Image:
    """uint8 [3, H, W] as large as fits a square of `side`, each pixel a square."""
    array = picture.permute(1, 2, 0).contiguous().numpy()
    found = Image.fromarray(array)
    scale = side / max(found.size)
    return found.resize((round(found.width * scale), round(found.height * scale)), Image.Resampling.NEAREST)


def write(whole: Image.Image, path: Path) -> int:
    """As PNG of at most 256 colours; returns its bytes."""
    with atomic_file(path) as partial, partial.open("wb") as file:
        whole.quantize(COLOURS, dither=Image.Dither.NONE).save(file, "PNG", optimize=True)
    return path.stat().st_size


def strip(clip: Tensor, count: int) -> list[Tensor]:
    """`count` frames of a clip [F, 3, H, W], evenly spread from its first to its last."""
    places = torch.linspace(0, len(clip) - 1, count).round().long()
    return list(clip[places])
