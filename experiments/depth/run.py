"""Hyper-connections against mHC and the plain residual at 8 to 64 layers: gain, gradients, and a rate that is too high on purpose.

python experiments/depth/run.py [--seeds 0 1] [--tokens N] [--only mhc-64-high ...]

Models of width 64 with dense feed-forward and none of the other parts of V4, 1,024 tokens a step. The composite gain is that of
the product of all mixing matrices (2512.24880, on propagation): the largest sum of absolute weights into a target stream (forward)
and out of a source (backward), and the smallest of either, means over tokens. Gradient norms are taken before clipping.
"""

import math
from typing import TYPE_CHECKING, Any

from torch import nn

from experiments.lib.runs import micro_recipe, one_stage, settings_of
from experiments.lib.sizes import sizes
from experiments.lib.stats import over_seeds, said
from experiments.lib.study import Found, Study, Unit
from fourfold.model.transformer import Transformer
from fourfold.training.data import TrainingData
from fourfold.training.objective import accumulate, set_mode
from fourfold.training.optim import Optimizer
from fourfold.training.recipes import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH, ROWS = 128, 8
KINDS = ("mhc", "hc", "plain")
DEPTHS = (8, 16, 32, 64)
RATES = {"normal": 4e-3, "high": 0.12}
WARM_UP = 0.1  # of the steps; the rate is constant after it
SPIKE = 1.0  # nats above the lowest loss so far
LEARNT = 0.5  # nats below the first loss that a run must end, or it counts as diverged
GAINS = ("residual_gain", "residual_gain_backward", "residual_gain_min")
SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "experts": None, "memory": None, "selection": None,
    "num_nextn_predict_layers": 0, "num_attention_heads": 4, "q_lora_rank": 32, "kv_lora_rank": 32, "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 16, "v_head_dim": 16,
}  # fmt: skip
COLOURS = {"mhc": "tab:blue", "hc": "tab:red", "plain": "tab:gray"}


class Depth(Study):
    name, tokens, seeds = "depth", 50 * ROWS * LENGTH, (0, 1)
    arms = tuple(f"{kind}-{depth}-{rate}" for depth in reversed(DEPTHS) for kind in KINDS for rate in RATES)

    def rank(self, arm: str, seed: int) -> int:
        return 13 + seed

    def recipe(self, arm: str, seed: int, tokens: int) -> Recipe:
        kind, depth, rate = arm.split("-")
        streams = {"streams": None} if kind == "plain" else {"hc_kind": kind}
        model = SHAPE | streams | {"num_hidden_layers": int(depth)}
        changes = {"sequence_length": LENGTH, "batch_size": ROWS, "optimizer": {"lr": RATES[rate]}}
        return micro_recipe(f"depth-{arm}", seed, one_stage(tokens), model, **changes)

    def settings(self, arm: str, seed: int, tokens: int) -> dict:
        return settings_of(self.recipe(arm, seed, tokens)) | {"warm_up": WARM_UP}

    def measure(self, unit: Unit, tokens: int) -> dict:
        recipe = self.recipe(unit.arm, unit.seed, tokens)
        data = TrainingData.open(recipe)
        config = data.fit(recipe.model_config())
        model = Transformer(config, None).init_weights(unit.seed)
        set_mode(model, "dense")
        optimizer = Optimizer(model, recipe.optimizer)
        steps, losses, norms, by_layer = recipe.steps, [], [], {}
        gains: dict[str, list[float]] = {name: [] for name in GAINS}
        marks = {0, steps // 4, steps // 2, steps - 1}
        for step in range(steps):
            outcome = accumulate(model, data.batch(step), "dense", 0.0, 0)
            if step in marks:
                by_layer[step] = [gradient_norm(layer) for layer in model.layers]
            norm, _ = optimizer.step(recipe.optimizer.lr * min((step + 1) / max(WARM_UP * steps, 1), 1.0))
            losses.append(outcome.terms["lm_loss"])
            norms.append(norm)
            for name in GAINS if outcome.gains else ():
                gains[name].append(outcome.gains[name])
            if not math.isfinite(losses[-1] + norm):
                break
        return {"sizes": sizes(config), "steps": steps, "loss": losses, "grad_norm": norms, "grad_norm_by_layer": by_layer, **gains}

    def merge(self, found: Found, tokens: int) -> dict:
        return {
            "rates": RATES,
            "warm_up": WARM_UP,
            "spike": SPIKE,
            "learnt": LEARNT,
            "arms": {arm: self.arm(found[arm]) for arm in self.arms if arm in found},
        }

    def arm(self, units: dict[int, dict]) -> dict:
        """Figures over seeds, and of the lowest seed the course of the run."""
        first = units[min(units)]
        figures = {
            "final_loss": {seed: final_loss(u) for seed, u in units.items() if not diverged(u)},
            "spikes": {seed: spikes(u["loss"]) for seed, u in units.items()},
            "largest_gain_forward": {seed: max(u["residual_gain"], default=1.0) for seed, u in units.items()},
            "largest_gain_backward": {seed: max(u["residual_gain_backward"], default=1.0) for seed, u in units.items()},
            "smallest_gain": {seed: min(u["residual_gain_min"], default=1.0) for seed, u in units.items()},
            "grad_norm_at_init": {seed: u["grad_norm"][0] for seed, u in units.items()},
            "largest_grad_norm": {seed: max(n for n in u["grad_norm"] if math.isfinite(n)) for seed, u in units.items()},
        }
        course = ("loss", "grad_norm", "grad_norm_by_layer", *GAINS)
        return {
            "sizes": first["sizes"], "diverged": sum(map(diverged, units.values())), "runs": len(units),
            **{name: over_seeds(values) for name, values in figures.items()},
            "course": {name: first[name] for name in course},
        }  # fmt: skip

    def table(self, result: dict) -> str:
        lines = [
            "| arm | final loss | spikes | diverged | largest gain, forward and back | smallest | gradient norm at init, largest |",
            "|---|---|---|---|---|---|---|",
        ]
        for arm, row in result["arms"].items():
            largest = f"{row['largest_gain_forward']['mean']:.4g}, {row['largest_gain_backward']['mean']:.4g}"
            norms = f"{row['grad_norm_at_init']['mean']:.3g}, {row['largest_grad_norm']['mean']:.3g}"
            lines.append(
                f"| {arm} | {said(row['final_loss'], 3)} | {row['spikes']['mean']:g} | {row['diverged']} of {row['runs']} "
                f"| {largest} | {row['smallest_gain']['mean']:.4g} | {norms} |"
            )
        return "\n".join(lines)

    def draw(self, result: dict) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(12, 7), layout="constrained")
        grid = figure.subplots(2, 3)
        for row, rate in zip(grid, RATES, strict=True):
            self.draw_rate(row, rate, result["arms"])
        return figure

    def draw_rate(self, row, rate: str, arms: dict) -> None:
        """Largest gain and gradient norm over depth, and the loss of the deepest model."""
        for kind in KINDS:
            there = [(depth, arms[f"{kind}-{depth}-{rate}"]) for depth in DEPTHS if f"{kind}-{depth}-{rate}" in arms]
            if not there:
                continue
            depths = [depth for depth, _ in there]
            for axes, field in ((row[0], "largest_gain_forward"), (row[1], "largest_grad_norm")):
                axes.plot(depths, [arm[field]["mean"] for _, arm in there], "o-", color=COLOURS[kind], label=kind)
            if kind != "plain":
                row[0].plot(depths, [arm["largest_gain_backward"]["mean"] for _, arm in there], "o--", color=COLOURS[kind])
            row[2].plot(there[-1][1]["course"]["loss"], color=COLOURS[kind], linewidth=1, label=f"{kind}, {depths[-1]} layers")
        for axes, title in zip(row, ("largest gain, forward (line) and backward", "largest gradient norm", "loss"), strict=True):
            axes.set_title(f"{title}; rate {RATES[rate]:g}", fontsize=10)
            axes.set_xlabel("step" if title == "loss" else "layers")
            if title != "loss":
                axes.set_xscale("log", base=2)
                axes.set_yscale("log")
            axes.grid(alpha=0.3)
            if axes.lines:
                axes.legend(fontsize=8)


def gradient_norm(module: nn.Module) -> float:
    """Of all gradients in a module together, before clipping."""
    return math.sqrt(sum(p.grad.float().square().sum().item() for p in module.parameters() if p.grad is not None))


def spikes(losses: list[float]) -> int:
    """How often the loss rose by more than SPIKE above its lowest so far; counted once until it is back within half of that."""
    count, lowest, above = 0, math.inf, False
    for loss in losses:
        if not math.isfinite(loss) or loss > lowest + SPIKE:
            count, above = count + (not above), True
        elif loss < lowest + SPIKE / 2:
            above = False
        lowest = min(lowest, loss) if math.isfinite(loss) else lowest
    return count


def final_loss(unit: dict) -> float:
    """Mean over the last tenth of the steps."""
    last = unit["loss"][-max(unit["steps"] // 10, 1) :]
    return sum(last) / len(last)


def diverged(unit: dict) -> bool:
    """Whether the loss stopped being finite, or ended hardly lower than it began."""
    return len(unit["loss"]) < unit["steps"] or not math.isfinite(final_loss(unit)) or final_loss(unit) > unit["loss"][0] - LEARNT


if __name__ == "__main__":
    Depth().main()
