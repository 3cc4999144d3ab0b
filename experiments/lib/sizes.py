"""Models made equal in what a token multiplies with, by one width."""

from collections.abc import Callable

from fourfold.config import ModelConfig
from fourfold.errors import ConfigError
from fourfold.planner.count import count

TOLERANCE = 0.02
WIDEST = 4096


def match_active(config_at: Callable[[int], ModelConfig], target: int) -> int:
    """The width at which `config_at(width)` has nearest to `target` active parameters (multi-token prediction apart).

    Raises ConfigError when none comes within 2 %.
    """
    best = nearest(lambda width: count(config_at(width)).active, target)
    active = count(config_at(best)).active
    if abs(active / target - 1) > TOLERANCE:
        raise ConfigError(f"width: no value gives {target:,} active parameters; the nearest, {best}, gives {active:,}")
    return best


def nearest(size_at: Callable[[int], int], target: int) -> int:
    """The number from 1 to WIDEST at which a size that grows with it comes nearest to `target`."""
    low, high = 1, WIDEST
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size_at(middle) <= target else (low, middle)
    return min((low, high), key=lambda number: abs(size_at(number) - target))


def sizes(config: ModelConfig) -> dict:
    """Parameters as `fourfold plan` counts them: active, total, of those the sparse ones by kind."""
    counts = count(config)
    return {
        "active": counts.active,
        "total": counts.total,
        "routed_experts": counts.parts.get("routed experts", 0),
        "engram_tables": counts.engram,
        "mtp": counts.mtp,
    }
