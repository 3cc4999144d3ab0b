"""From logits to a token: greedy, or a draw from the part of the distribution that the settings leave.

`plain_shortlist` is the definition: it sorts the whole vocabulary. `sample` draws the same token and sorts only the candidates that
can matter, the tail being known by its sum alone. What comes before, penalties and constraints, is in chooser.py.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fourfold.errors import ConfigError, FourfoldError

MOST_STOPS = 16
CANDIDATES = 64  # sorted at first; eight times as many each time that they do not hold enough


@dataclass(frozen=True)
class Sampling:
    """How an answer is drawn. Every field is checked; a ConfigError names the one that is wrong.

    temperature 0 is greedy; top_k 0, top_p 1, min_p 0, penalties 0 and repetition_penalty 1 are off; the same seed gives the same
    tokens; None draws a new seed. frequency_penalty is taken off a logit for each time that its token was generated,
    presence_penalty once; repetition_penalty divides the logits (multiplies those below 0) of tokens that were generated or stand
    in the prompt. logit_bias is added to the logits of tokens by id, -100 forbids in practice. max_tokens None means as far as the
    context reaches. Text ends before the first stop string that is completed; the ids in stop_tokens end it like an end of text.
    """

    temperature: float = 0.7
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = 256
    stop: Sequence[str] = field(default=())
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    stop_tokens: Sequence[int] = field(default=())

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())
        object.__setattr__(self, "stop", stop)
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens or ()))
        object.__setattr__(self, "logit_bias", dict(self.logit_bias or {}))
        _number("temperature", self.temperature, lambda value: 0 <= value < math.inf, "0 (greedy) or more")
        _number("top_p", self.top_p, lambda value: 0 < value <= 1, "above 0 and at most 1 (off)")
        _number("min_p", self.min_p, lambda value: 0 <= value <= 1, "from 0 (off) to 1")
        _number("frequency_penalty", self.frequency_penalty, lambda value: -2 <= value <= 2, "from -2 to 2, 0 is off")
        _number("presence_penalty", self.presence_penalty, lambda value: -2 <= value <= 2, "from -2 to 2, 0 is off")
        _number("repetition_penalty", self.repetition_penalty, lambda value: 0 < value < math.inf, "above 0, 1 is off")
        _whole("top_k", self.top_k, 0, "0 (off) or more")
        if self.seed is not None:
            _whole("seed", self.seed, 0, "0 or more, below 2**63")
        if self.max_tokens is not None:
            _whole("max_tokens", self.max_tokens, 1, "1 or more")
        if not all(isinstance(text, str) and text for text in stop):
            raise ConfigError("stop: holds something that is not text, or empty text; give strings of one character or more")
        if len(stop) > MOST_STOPS:
            raise ConfigError(f"stop: holds {len(stop)} strings; give {MOST_STOPS} at most")
        for token in self.stop_tokens:
            _whole("stop_tokens", token, 0, "0 or more for each id")
        for token, bias in self.logit_bias.items():
            _whole("logit_bias", token, 0, "0 or more for each id")
            _number(f"logit_bias[{token}]", bias, lambda value: -100 <= value <= 100, "from -100 to 100")

    def generator(self) -> torch.Generator:
        """The source of the draws: one for each answer, so that answers do not depend on their neighbours."""
        generator = torch.Generator()
        generator.seed() if self.seed is None else generator.manual_seed(self.seed)
        return generator


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator | None = None) -> int:
    """One token id from logits [V]; equal greedy logits go to the lower id. Penalties and bias are not applied here."""
    logits = logits.detach().float().cpu()
    best = int(logits.argmax())  # of equal ones the first
    if not logits[best].isfinite():
        raise FourfoldError("logits: not finite, so no token can be chosen; the weights are damaged or the format too narrow")
    if sampling.temperature == 0:
        return best
    draw = torch.rand((), generator=generator, dtype=torch.float64)
    return draw_from(*shortlist(logits, sampling, draw), draw)


def draw_from(ids: Tensor, mass: Tensor, draw: Tensor) -> int:
    """The id whose stretch of the mass, laid end to end, holds the point `draw` (0 to 1)."""
    below = mass.cumsum(0)
    return int(ids[(below <= draw * below[-1]).sum().clamp(max=len(ids) - 1)])


def plain_shortlist(logits: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """The ids that may be drawn, likeliest first, and their shares [n] (fp64, not made to sum to one again).

    Temperature comes first; then the smallest set that holds top_p of the mass of the top_k likeliest, then min_p of the best.
    """
    scaled, ids = (logits.double() - logits.max()).div(sampling.temperature).sort(descending=True, stable=True)
    if sampling.top_k:
        scaled, ids = scaled[: sampling.top_k], ids[: sampling.top_k]
    return _cut(ids, scaled.exp(), scaled.exp().sum(), sampling)


def shortlist(logits: Tensor, sampling: Sampling, draw: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """`plain_shortlist` without sorting what cannot be on it; with `draw` (0 to 1) it may end behind that point.

    Where it does, its last share is that of all that is left out, which keeps `draw_from` right.
    """
    if len(logits) <= 8 * CANDIDATES:
        return plain_shortlist(logits, sampling)
    best = logits.max().double()
    if sampling.top_k:
        ids, weight = _largest(logits, best, sampling.temperature, sampling.top_k)
        ids, weight = ids[: sampling.top_k], weight[: sampling.top_k]
        return _cut(ids, weight, weight.sum(), sampling)
    total = logits.double().sub_(best).div_(sampling.temperature).exp_().sum()
    count = CANDIDATES
    while True:
        ids, weight = _largest(logits, best, sampling.temperature, count)
        reached = weight.sum() / total
        if len(ids) < count or reached > sampling.top_p or weight[-1] < sampling.min_p:
            return _cut(ids, weight, total, sampling)
        if sampling.top_p == 1 and sampling.min_p == 0 and draw is not None and reached > draw + 1e-9:
            rest = (total - weight.sum()).clamp(min=0)
            return torch.cat([ids, ids[-1:]]), torch.cat([weight, rest[None]]) / total
        count *= 8


def _largest(logits: Tensor, best: Tensor, temperature: float, count: int) -> tuple[Tensor, Tensor]:
    """`count` of the largest and all that equal the last of them, or all that are not ruled out (-inf).

    Ids, and weights relative to the best, as a stable sort has them: likeliest first, equal ones by lower id.
    """
    if count < len(logits):
        values, ids = logits.topk(count + 1)
        clear = values[-2] > values[-1] or values[-1] == -math.inf  # else some that equal the last one may be missing
        ids = ids[:-1].sort().values if clear else (logits >= values[-2]).nonzero()[:, 0]
    else:
        ids = torch.arange(len(logits))
    ids = ids[logits[ids] > -math.inf]
    scaled, order = (logits[ids].double() - best).div(temperature).sort(descending=True, stable=True)
    return ids[order], scaled.exp()


def _cut(ids: Tensor, weight: Tensor, total: Tensor, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """What top_p and min_p leave of the likeliest, with weights [n] relative to the best; `total`: the weight of all."""
    mass = weight / total
    kept = (weight > 0) & (weight >= sampling.min_p)
    if sampling.top_p < 1:
        kept &= mass.cumsum(0) - mass < sampling.top_p
    return ids[kept], mass[kept]


def _number(name: str, value: float, fits: Callable[[float], bool], range_: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not fits(value):
        raise ConfigError(f"{name}: is {value!r}; choose a number {range_}")


def _whole(name: str, value: int, least: int, range_: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ConfigError(f"{name}: is {value!r}; choose a whole number {range_}")
