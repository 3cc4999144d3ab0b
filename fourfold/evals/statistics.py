"""Shares with Wilson intervals, ratios with bootstrap intervals (all of 95 %), and samples that are the same everywhere."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import numpy as np

from fourfold.data.documents import unit

T = TypeVar("T")
Z = 1.959964  # the normal quantile of a 95 % interval
DRAWS = 2000


def wilson(right: int, total: int) -> tuple[float, float]:
    """The interval of a share (Wilson 1927): honest near 0 and 1 and for few trials. (0, 1) when nothing was tried."""
    if total == 0:
        return 0.0, 1.0
    share, spread = right / total, Z * Z / total
    middle = share + spread / 2
    half = Z * math.sqrt(share * (1 - share) / total + spread / total / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))


def share(right: int, total: int) -> dict:
    """`right` of `total` with its interval; the share is None when nothing was tried."""
    return {"right": right, "total": total, "share": right / total if total else None, "interval": list(wilson(right, total))}


def bootstrap(above: Sequence[float], below: Sequence[float], seed: int = 0) -> list[float] | None:
    """The interval of sum(above) / sum(below) when whole units (documents, rows) are drawn again; None for fewer than two.

    Percentiles of `DRAWS` draws with replacement (Efron 1979).
    """
    units = len(above)
    if units < 2:
        return None
    counts = np.random.default_rng(seed).multinomial(units, np.full(units, 1 / units), size=DRAWS)
    pairs = counts @ np.stack([above, below], axis=1).astype(np.float64)  # [draws, 2]
    pairs = pairs[pairs[:, 1] > 0]
    return [float(edge) for edge in np.percentile(pairs[:, 0] / pairs[:, 1], [2.5, 97.5])]


def subset(items: Sequence[T], limit: int | None, key: Callable[[T], str]) -> list[T]:
    """The `limit` items whose keys hash lowest, in their order: the same on every machine, and a smaller one part of a larger."""
    if limit is None or limit >= len(items):
        return list(items)
    chosen = sorted(range(len(items)), key=lambda i: unit("eval:" + key(items[i])))[:limit]
    return [items[i] for i in sorted(chosen)]
