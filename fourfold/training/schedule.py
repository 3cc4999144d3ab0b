"""Learning-rate schedules: pure functions of the step, so that a resumed run needs nothing but its step number."""

import math


def warmup_stable_decay(step: int, steps: int, warmup: int, decay: int, final: float) -> float:
    """Multiplier of the learning rate at `step` (0-based) of `steps`: linear up, constant, linear down to `final`.

    The first step already learns (1 / warmup) and the last one runs at exactly `final` when there is a decay.
    """
    if step < warmup:
        return (step + 1) / warmup
    into_decay = step + 1 - (steps - decay)
    return 1.0 if into_decay <= 0 else 1.0 - (1.0 - final) * min(into_decay / decay, 1.0)


def warmup_cosine(step: int, steps: int, warmup: int, decay: int, final: float) -> float:
    """As `warmup_stable_decay`, with half a cosine from the end of the warm-up to the last step (`decay` is not used)."""
    if step < warmup:
        return (step + 1) / warmup
    progress = min((step + 1 - warmup) / max(steps - warmup, 1), 1.0)
    return final + (1.0 - final) * 0.5 * (1.0 + math.cos(math.pi * progress))


SCHEDULES = {"wsd": warmup_stable_decay, "cosine": warmup_cosine}
