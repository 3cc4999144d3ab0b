"""Training steps of several models timed in turn in one process, so that whatever the machine does meets them all alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch

from experiments.lib.machine import ForeignWatch
from fourfold.data.rows import RowBatch
from fourfold.model.transformer import Transformer
from fourfold.training.memory import keep_freed_memory
from fourfold.training.objective import Mode, accumulate, set_mode
from fourfold.training.optim import Optimizer, OptimizerSettings
from fourfold.training.start import to_half

FOREIGN = 0.12  # of a core: a sample with more of it is dropped
STEADY = 0.1  # warm-up ends when a step is within this of the one before it
WARM_UPS = 12  # at most


class Trainee:
    """A model and its optimiser; `step` does what a step of the training loop does."""

    def __init__(self, model: Transformer, settings: OptimizerSettings, dtype: torch.dtype = torch.float32) -> None:
        self.model, self.settings = model, settings
        if dtype == torch.bfloat16:
            to_half(model)
        indexers = {name for name, _ in model.indexer_parameters()}
        self.optimizer = Optimizer(model, settings, indexers, dtype)

    def step(self, rows: RowBatch, mode: Mode, mtp_weight: float = 0.3) -> tuple[float, float]:
        """One step in a mode; returns the seconds of forward and backward together, and those of the optimiser."""
        set_mode(self.model, mode)
        began = time.perf_counter()
        outcome = accumulate(self.model, rows, mode, mtp_weight, 0)
        between = time.perf_counter()
        self.optimizer.step(self.settings.lr)
        ended = time.perf_counter()
        experts = self.model.config.experts
        if experts is not None and experts.topk_method == "noaux_tc" and mode != "indexer":
            for router, load in zip(self.model.routers(), outcome.loads, strict=True):
                router.balance(load, experts.bias_update_speed)
        return between - began, ended - between


@dataclass
class Samples:
    """Seconds of (forward and backward, optimiser), clean ones and those that were dropped."""

    clean: list[tuple[float, float]] = field(default_factory=list)
    dropped: list[tuple[float, float]] = field(default_factory=list)
    warm_ups: int = 0

    def summary(self, tokens: int) -> dict:
        """Medians; of the dropped samples too when none was clean, and then it says so."""
        kept = self.clean or self.dropped
        both, optimiser = statistics.median(map(sum, kept)), statistics.median(s[1] for s in kept)
        return {
            "tokens_per_second": round(tokens / both, 1),
            "ms": round(1000 * both, 2),
            "ms_forward_backward": round(1000 * statistics.median(s[0] for s in kept), 2),
            "ms_optimiser": round(1000 * optimiser, 2),
            "ms_range": [round(1000 * end(map(sum, kept)), 2) for end in (min, max)],
            "samples": len(self.clean),
            "dropped": len(self.dropped),
            "warm_ups": self.warm_ups,
        }


def interleaved(
    variants: Mapping[str, tuple[Trainee, Mode]], rows: Callable[[int], RowBatch], rounds: int, say: Callable[[str], None] = print
) -> dict[str, dict]:
    """Time every variant `rounds` times, one after another, each round on other rows; `rows(i)` gives the i-th batch.

    Each is warmed up until its step time holds still: some kernels are compiled for each new shape. A sample during which
    others used the processor is taken again, at most as often as there are rounds.
    """
    keep_freed_memory()
    found = {name: Samples() for name in variants}
    size = math.prod(rows(0).tokens[:, 1:].shape)
    for name, (trainee, mode) in variants.items():
        found[name].warm_ups = _warm_up(trainee, mode, rows)
        say(f"{name}: warm after {found[name].warm_ups} steps")
    watch = ForeignWatch()
    for turn in range(2 * rounds):
        wanting = [name for name in variants if len(found[name].clean) < rounds]
        for name in wanting:
            trainee, mode = variants[name]
            batch = rows(WARM_UPS + turn)
            watch.start()
            sample = trainee.step(batch, mode)
            foreign = watch.stop()
            (found[name].clean if foreign is None or foreign <= FOREIGN else found[name].dropped).append(sample)
        if wanting:
            say(f"round {turn + 1}: {sum(len(found[name].clean) < rounds for name in variants)} still wanting")
    return {name: samples.summary(size) for name, samples in found.items()}


def _warm_up(trainee: Trainee, mode: Mode, rows: Callable[[int], RowBatch]) -> int:
    before = math.inf
    for done in range(WARM_UPS):
        now = sum(trainee.step(rows(done), mode))
        if done >= 2 and abs(now - before) <= STEADY * before:
            return done + 1
        before = now
    return WARM_UPS
