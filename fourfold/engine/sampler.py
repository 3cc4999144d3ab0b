"""From logits to a token: greedy, or a draw from the part of the distribution that the settings leave."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fourfold.errors import ConfigError, FourfoldError


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Every field is checked; a ConfigError names the one that is wrong.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off; the same seed gives the same tokens; None draws a new seed.
    max_tokens None means as far as the context reaches. Text ends before the first stop string that is completed.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 256
    stop: Sequence[str] = field(default=())

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        _number("temperature", self.temperature, lambda value: 0 <= value < math.inf, "0 (greedy) or more")
        _number("top_p", self.top_p, lambda value: 0 < value <= 1, "above 0 and at most 1 (off)")
        _number("min_p", self.min_p, lambda value: 0 <= value <= 1, "from 0 (off) to 1")
        _whole("top_k", self.top_k, 0, "0 (off) or more")
        if self.seed is not None:
            _whole("seed", self.seed, 0, "0 or more, below 2**63")
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, "1 or more")
        if not all(isinstance(text, str) and text for text in stop):
            raise ConfigError("stop: holds something that is not text, or empty text; give strings of one character or more")

    def generator(self) -> torch.Generator:
        """The source of the draws: one for each answer, so that answers do not depend on their neighbours."""
        generator = torch.Generator()
        generator.seed() if self.seed is None else generator.manual_seed(self.seed)
        return generator


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> int:
    """One token id from logits [V]; equal greedy logits go to the lower id."""
    logits = logits.detach().float().cpu()
    best = logits.max()
    if not best.isfinite():
        raise FourfoldError("logits: not finite, so no token can be chosen; the weights are damaged or the format too narrow")
    if sampling.temperature == 0:
        return int((logits == best).nonzero()[0])
    ids, mass = shortlist(logits, sampling)
    below = mass.cumsum(0)
    draw = torch.rand((), generator=generator, dtype=torch.float64) * below[-1]
    return int(ids[(below <= draw).sum().clamp(max=len(ids) - 1)])


def shortlist(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The ids that may be drawn, likeliest first, and their shares [n] (fp64, not made to sum to one again).

    Temperature comes first; then the smallest set that holds top_p of the mass of the top_k likeliest, then min_p of the best.
    """
    scaled, ids = (logits.double() - logits.max()).div(sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k:
        scaled, ids = scaled[: sampling.top_k], ids[: sampling.top_k]
    mass = scaled.softmax(0)
    kept = (mass > 0) & (mass >= sampling.min_p * mass[0])
    if sampling.top_p < 1:
        kept &= mass.cumsum(0) - mass < sampling.top_p
    return ids[kept], mass[kept]


def _number(name: str, value: float, fits: Callable[[float], bool], range_: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise ConfigError(f"{name}: is {value!r}; choose a number {range_}")


def _whole(name: str, value: int, least: int, range_: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ConfigError(f"{name}: is {value!r}; choose a whole number {range_}")
