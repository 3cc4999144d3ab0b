"""What a drawing of one size looks like before its codes are known, and which sizes there are.

    <|draw|>4x4<|frame|>code ... code<|/draw|>          <|film|>8x4x4<|frame|>codes<|frame|>codes ... <|/film|>

Once the size is said, all else is known but the codes themselves: where they stand, how many, and their positions.
"""

import math
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch

from fourfold.errors import ConfigError
from fourfold.media import spans
from fourfold.media.spans import Span
from fourfold.modality import Modality
from fourfold.parts import MediaOutConfig
from fourfold.text.tokenizer import Tokenizer

Grid = tuple[int, ...]  # rows and columns of a picture; frames, rows and columns of a clip

MOST_CODES = 4096


@dataclass(frozen=True)
class Layout:
    """The whole span of a drawing, with 0 where a code will stand."""

    grid: Grid
    span: Span

    def __len__(self) -> int:
        return len(self.span)

    @cached_property
    def codes(self) -> list[int]:
        """The places of the codes."""
        return (self.span.modality != Modality.TEXT).nonzero()[:, 0].tolist()

    @property
    def opening(self) -> int:
        """How many tokens come before the first code."""
        return self.codes[0]


@lru_cache(maxsize=32)
def layout_of(grid: Grid, tokenizer: Tokenizer) -> Layout:
    """A picture of (rows, columns) or a clip of (frames, rows, columns)."""
    blank = torch.zeros(grid, dtype=torch.long)
    return Layout(grid, (spans.drawing if len(grid) == 2 else spans.film)(blank, tokenizer))


def check_grid(grid: Grid, most: int = MOST_CODES) -> Grid:
    """Raise ConfigError unless it is the size of a picture or clip of at most `most` codes."""
    grid = tuple(grid)
    if len(grid) not in (2, 3) or not all(isinstance(side, int) and side > 0 for side in grid):
        raise ConfigError(f"grid: is {said(grid)}; give rows x columns, or frames x rows x columns of a clip")
    if math.prod(grid) > most:
        raise ConfigError(f"grid: {said(grid)} is {math.prod(grid):,} codes, more than {most:,}; choose a smaller one")
    return grid


def parse_grid(text: str) -> Grid | None:
    """(8, 4, 4) of "8x4x4"; None of anything else."""
    return tuple(map(int, text.split("x"))) if re.fullmatch(r"[1-9]\d{0,5}(x[1-9]\d{0,5}){1,2}", text) else None


def said(grid: Grid) -> str:
    """ "8x4x4" of (8, 4, 4)."""
    return "x".join(map(str, grid))


@lru_cache(maxsize=16)
def openings(largest: Grid, tokenizer: Tokenizer) -> list[tuple[Grid, list[int]]]:
    """Every size that is in no direction larger than `largest`, with the ids that say it, `<|frame|>` included."""
    grids = [tuple(grid) for grid in torch.cartesian_prod(*(torch.arange(1, side + 1) for side in largest)).tolist()]
    end = tokenizer.special("frame")
    return [(grid, [*ids, end]) for grid, ids in zip(grids, tokenizer.encode_many([said(g) for g in grids]), strict=True)]


def length(grid: Grid, ids: list[int]) -> int:
    """Tokens of a whole drawing: its mark, the size, a mark before each further frame, the codes, the end."""
    further = grid[0] - 1 if len(grid) == 3 else 0
    return 1 + len(ids) + further + math.prod(grid) + 1


def largest_grids(config: MediaOutConfig | None) -> dict[str, Grid]:
    """What a model may draw by itself: nothing larger than the grids of its config. By the name of the mark that begins it."""
    return {} if config is None else {"draw": config.image_grid, "film": config.film_grid}
