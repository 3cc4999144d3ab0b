"""A figure is never alone: a value goes with its count, its 95 % interval, what chance gives and what a simple baseline gives.

    {"value": 0.86, "count": 10000, "interval": [0.85, 0.87], "chance": 0.1, "baseline": 0.84, "baseline_is": "linear model", ...}

`count` is what was tried (pictures, clips, characters). Where a figure cannot be had, `value` is None and `reason` says why.
"""

from collections.abc import Sequence

from fourfold.evals.statistics import bootstrap, wilson


def figure(
    value: float | None,
    count: int,
    interval: Sequence[float] | None,
    chance: float | None,
    baseline: float | None,
    baseline_is: str,
    **more: object,
) -> dict:
    """A value with all that belongs to it; `more`: ceilings, parts, definitions."""
    about = {"value": value, "count": count, "interval": None if interval is None else list(interval), "chance": chance}
    return about | {"baseline": baseline, "baseline_is": baseline_is, **more}


def accuracy(right: Sequence[bool], chance: float, baseline: float | None, baseline_is: str, **more: object) -> dict:
    """The share of independent trials that came out right, with Wilson's interval."""
    value = sum(right) / len(right) if right else None
    return figure(value, len(right), wilson(sum(right), len(right)), chance, baseline, baseline_is, **more)


def ratio(
    units: Sequence[tuple[float, float]], chance: float | None, baseline: float | None, baseline_is: str, **more: object
) -> dict:
    """The ratio of the sums of pairs, with the interval over these units (clips, concepts); the count is the lower sum."""
    above, below = [unit[0] for unit in units], [unit[1] for unit in units]
    total = sum(below)
    value = sum(above) / total if total else None
    return figure(value, round(total), bootstrap(above, below), chance, baseline, baseline_is, units=len(units), **more)


def missing(reason: str) -> dict:
    """A figure that this model, corpus or machine cannot have."""
    return figure(None, 0, None, None, None, "", reason=reason)
