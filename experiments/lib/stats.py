"""Means over seeds with their 95 % intervals, and paired differences, from which most of what seeds share has gone."""

import math
import statistics
from collections.abc import Mapping, Sequence

# 97.5 % quantile of Student's t with 1, 2, ... degrees of freedom
T_QUANTILE = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)


def interval(values: Sequence[float]) -> dict:
    """`mean`, the `half_width` of its 95 % interval (None for fewer than two values), and the `values` themselves."""
    n = len(values)
    half = None
    if n > 1:
        quantile = T_QUANTILE[n - 2] if n - 2 < len(T_QUANTILE) else 1.96
        half = quantile * statistics.stdev(values) / math.sqrt(n)
    return {"mean": statistics.fmean(values), "half_width": half, "values": list(values)}


def over_seeds(values: Mapping[int, float]) -> dict | None:
    """`interval` of values by seed, in the order of the seeds; None when there are none."""
    return interval([values[seed] for seed in sorted(values)]) | {"seeds": sorted(values)} if values else None


def paired(values: Mapping[int, float], base: Mapping[int, float]) -> dict | None:
    """`over_seeds` of value minus base, over the seeds that both have: same data in the same order, same initial numbers."""
    return over_seeds({seed: value - base[seed] for seed, value in values.items() if seed in base})


def said(figure: dict | None, digits: int = 4, sign: bool = False) -> str:
    """`1.2345 ± 0.0012` for a table."""
    if figure is None:
        return "-"
    mean = f"{figure['mean']:{'+' if sign else ''}.{digits}f}"
    return mean if figure["half_width"] is None else f"{mean} ± {figure['half_width']:.{digits}f}"
