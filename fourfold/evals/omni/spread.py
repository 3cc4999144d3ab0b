"""How different things of one class are from each other, and how near to what a model has seen."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fourfold.evals.statistics import DRAWS

AT_ONCE = 256  # rows compared with everything in one product


def spread(features: Tensor) -> float:
    """The mean distance between two different rows of features [n, d]."""
    return torch.pdist(features.double()).mean().item()


def relative_spread(drawn: Sequence[Tensor], real: Sequence[Tensor], seed: int = 0) -> tuple[float, list[float]]:
    """The spread within a class of what was drawn over that of the real, mean over classes, and its interval.

    Each pair is features [n, d] of one class, n at least 2. The interval draws the drawings of each class again; pairs of a drawing
    with itself do not count, so that drawing again adds no bias.
    """
    generator = np.random.default_rng(seed)
    values, draws = [], np.zeros(DRAWS)
    for mine, theirs in zip(drawn, real, strict=True):
        if len(mine) < 2 or len(theirs) < 2:
            raise ValueError("a class has fewer than two members")
        distances, norm = torch.cdist(mine.double(), mine.double(), compute_mode="donot_use_mm_for_euclid_dist"), spread(theirs)
        values.append(spread(mine) / norm)
        draws += _drawn_again(distances.numpy(), generator) / norm
    low, high = np.percentile(draws / len(values), [2.5, 97.5])
    return sum(values) / len(values), [float(low), float(high)]


def _drawn_again(distances: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """[DRAWS] mean distances between different members of samples with replacement."""
    n = len(distances)
    counts = generator.multinomial(n, np.full(n, 1 / n), size=DRAWS).astype(np.float64)
    pairs = np.maximum(n * n - (counts**2).sum(1), 1.0)  # ordered pairs of different members
    return ((counts @ distances) * counts).sum(1) / pairs


def nearest(rows: Tensor, among: Tensor) -> tuple[Tensor, Tensor]:
    """rows [n, d], among [m, d] -> distance to the nearest of `among`, fp32 [n], and which it is, int64 [n]."""
    squares, found = (among * among).sum(1), []
    for part in rows.split(AT_ONCE):
        distances = squares - 2 * (part @ among.T)  # without the part's own square, which moves no minimum
        least, place = distances.min(1)
        found.append((least + (part * part).sum(1), place))
    least, place = (torch.cat(column) for column in zip(*found, strict=True))
    return least.clamp(min=0).sqrt(), place


def share_closer(mine: Tensor, theirs: Tensor) -> tuple[float, list[float]]:
    """How often one of `mine` [n] is less than one of `theirs` [m], ties counting half, and its interval over `mine`.

    0.5 when both are distributed alike (Mann and Whitney 1947).
    """
    ordered = theirs.sort().values
    below, through = (torch.searchsorted(ordered, mine.contiguous(), right=side) for side in (False, True))
    larger = (len(theirs) - (below + through).double() / 2) / len(theirs)  # of each of mine: the share of theirs above it
    draws = np.random.default_rng(0).multinomial(len(mine), np.full(len(mine), 1 / len(mine)), size=DRAWS) @ larger.numpy()
    return larger.mean().item(), [float(edge) for edge in np.percentile(draws / len(mine), [2.5, 97.5])]
