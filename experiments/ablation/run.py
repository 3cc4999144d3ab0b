"""Every part of V4 switched off, one at a time, on preset `micro`: at equal active parameters and tokens, and at equal time.

python experiments/ablation/run.py [--seeds 0 1 2] [--tokens N] [--only ARM ...]

`ARM` trains on the same tokens as `full`; one width is changed until the active parameters agree within 2 %. `ARM@time` has the
same sizes and as many tokens as it gets through in the time of `full`, with a schedule of that length; how fast each is comes from
`timing`, in which the steps of all arms take turns in one process. Where the speeds agree within 5 %, equal tokens is equal time.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

from experiments.lib.runs import (
    LENGTH,
    LR,
    ROWS,
    SHARES,
    curve,
    forget,
    last_score,
    micro_recipe,
    one_stage,
    settings_of,
    three_stages,
    trained,
)
from experiments.lib.sizes import match_active, sizes
from experiments.lib.stats import over_seeds, paired, said
from experiments.lib.study import Found, NotReadyError, Study, Unit
from experiments.lib.timing import Trainee, interleaved
from fourfold.config import ModelConfig
from fourfold.model.transformer import Transformer
from fourfold.training.data import TrainingData
from fourfold.training.objective import Mode
from fourfold.training.recipes import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDS = 5  # of the timing
SAME_SPEED = 0.05
TIMED = "@time"
STABLE = 0.8  # of the dense stage: where its learning rate begins to fall
GROUPED = {
    "kv_lora_rank": None, "q_lora_rank": None, "qk_nope_head_dim": None, "qk_rope_head_dim": None, "v_head_dim": None,
    "num_key_value_heads": 2, "head_dim": 24,
}  # fmt: skip


@dataclass(frozen=True)
class Arm:
    """What an arm changes of `full`, by published names, and the width that makes up for it."""

    said: str
    model: dict[str, Any] = field(default_factory=dict)
    width: str = "moe_intermediate_size"
    optimizer: dict[str, Any] = field(default_factory=dict)


ARMS = {
    "full": Arm("all of V4"),
    "no-mhc": Arm("plain residual instead of mHC", {"streams": None}),
    "hc": Arm("unconstrained hyper-connections instead of mHC", {"hc_kind": "hc"}),
    "no-engram": Arm("without Engram", {"memory": None}),
    "no-mtp": Arm("without multi-token prediction", {"num_nextn_predict_layers": 0}),
    "no-indexer": Arm("dense attention throughout", {"selection": None}),
    "no-shared": Arm("without a shared expert", {"n_shared_experts": 0}),
    "dense-ffn": Arm("dense feed-forward instead of experts", {"experts": None}, "intermediate_size"),
    "gqa": Arm("grouped-query attention instead of MLA", GROUPED),
    "adamw": Arm("AdamW instead of Muon", optimizer={"matrices": "adamw"}),
    "adamw-slow": Arm("AdamW instead of Muon, at a third of the rate", optimizer={"matrices": "adamw", "lr": LR / 3}),
    "bare": Arm(
        "without mHC, Engram, MTP and indexer",
        {"streams": None, "memory": None, "num_nextn_predict_layers": 0, "selection": None},
    ),
}


class Ablation(Study):
    name, tokens, seeds = "ablation", 400_000, (0, 1, 2)
    arms = ("timing", *ARMS, *(arm + TIMED for arm in ARMS if arm != "full"))

    def rank(self, arm: str, seed: int) -> int:
        """Two seeds of every arm first, then equal time, then the third seed."""
        if arm == "timing":
            return 1
        return (30 if arm.endswith(TIMED) else 10) + (40 if seed >= 2 else seed)

    def is_alone(self, arm: str) -> bool:
        return arm == "timing"

    def seeds_of(self, arm: str, seeds: Sequence[int]) -> Sequence[int]:
        return [0] if arm == "timing" else seeds

    def recipe(self, arm: str, seed: int, tokens: int) -> Recipe:
        """An arm's run with its width fitted to the active parameters of `full`."""
        stages = three_stages(tokens, ARMS[arm].model.get("selection", True) is not None)
        return micro_recipe(f"ablation-{arm}", seed, stages, fitted(arm), optimizer=ARMS[arm].optimizer)

    def settings(self, arm: str, seed: int, tokens: int) -> dict:
        if arm == "timing":
            models = {name: self.recipe(name, 0, self.tokens).model_config().to_flat() for name in ARMS}
            return {"rounds": ROUNDS, "rows": ROWS, "length": LENGTH, "models": models}
        base = arm.removesuffix(TIMED)
        if base != arm:
            tokens = self.tokens_at_equal_time(base, tokens)
        return settings_of(self.recipe(base, seed, tokens))

    def speeds(self, tokens: int) -> dict[str, dict[str, float]]:
        """arm -> mode -> tokens per second, as `timing` found them. Raises NotReadyError."""
        kept = self.unit("timing", 0, tokens).load()
        if kept is None:
            raise NotReadyError(f"{self.name}: how long a step takes is not known yet; run --only timing first")
        return {arm: {mode: row["tokens_per_second"] for mode, row in by.items()} for arm, by in kept["result"]["speeds"].items()}

    def tokens_at_equal_time(self, arm: str, tokens: int) -> int:
        """How many tokens an arm gets through while `full` trains on `tokens`."""
        speeds = self.speeds(tokens)
        seconds = [
            sum(stage.tokens / speeds[name][stage.mode] for stage in self.recipe(name, 0, tokens).stages) for name in ("full", arm)
        ]
        return round(tokens * seconds[0] / seconds[1])

    def measure(self, unit: Unit, tokens: int) -> dict:
        if unit.arm == "timing":
            return {"speeds": self.time_arms()}
        arm = unit.arm.removesuffix(TIMED)
        if arm != unit.arm:
            other = self.tokens_at_equal_time(arm, tokens)
            if abs(other / tokens - 1) <= SAME_SPEED:
                return {"same_speed": True, "ratio": other / tokens}
            tokens = other
        recipe = self.recipe(arm, unit.seed, tokens)
        model = trained(recipe, unit.folder)
        config = recipe.model_config()
        width = ARMS[arm].width
        result = {"sizes": sizes(config), "width": {width: config.to_flat()[width]}, "held_out": last_score(model)}
        result |= curve(unit.folder)
        forget(unit.folder)
        return result

    def time_arms(self) -> dict[str, dict[str, dict]]:
        """arm -> mode -> medians, over the steps of all arms in turn on one thread."""
        data = TrainingData.open(self.recipe("full", 0, self.tokens))
        variants: dict[str, tuple[Trainee, Mode]] = {}
        for arm in ARMS:
            recipe = self.recipe(arm, 0, self.tokens)
            model = Transformer(data.fit(recipe.model_config()), data.token_classes).init_weights(0)
            trainee = Trainee(model, recipe.optimizer)
            variants |= {f"{arm} {mode}": (trainee, mode) for mode in dict.fromkeys(stage.mode for stage in recipe.stages)}
        timed = interleaved(variants, data.batch, ROUNDS)
        found: dict[str, dict[str, dict]] = {}
        for name, row in timed.items():
            arm, mode = name.split()
            found.setdefault(arm, {})[mode] = row
        return found

    def merge(self, found: Found, tokens: int) -> dict:
        timing = found.get("timing", {}).get(0)
        rows = {}
        for arm in [arm for arm in ARMS if arm in found]:
            first = next(iter(found[arm].values()))
            row = {"said": ARMS[arm].said, "sizes": first["sizes"], "width": first["width"]}
            row["bits_per_byte"] = over_seeds(_last(found[arm]))
            row["difference"] = paired(_last(found[arm]), _last(found.get("full", {})))
            row["curve"] = {seed: unit["points"] for seed, unit in found[arm].items()}
            row["tokens_per_second"] = {seed: unit["tokens_per_second"] for seed, unit in found[arm].items()}
            if timing is not None and arm != "full":
                row["equal_time"] = self.equal_time(arm, found, tokens, timing["speeds"])
            rows[arm] = row
        return {"stages": SHARES, "rows_and_length": [ROWS, LENGTH], "timing": timing, "arms": rows}

    def equal_time(self, arm: str, found: Found, tokens: int, speeds: dict) -> dict:
        """Tokens for one of `full`'s; the difference in runs of that length; and the difference read from the runs on equal
        tokens, both at the constant rate, when the faster one's rate is about to fall.
        """
        timed = found.get(arm + TIMED, {})
        scores = {
            seed: _last(found[arm]).get(seed) if "same_speed" in unit else unit["held_out"]["sparse"]
            for seed, unit in timed.items()
        }
        scores = {seed: value for seed, value in scores.items() if value is not None}
        full = found.get("full", {})
        return {
            "tokens_ratio": self.tokens_at_equal_time(arm, tokens) / tokens,
            "bits_per_byte": over_seeds(scores),
            "difference": paired(scores, _last(full)),
            "difference_at_constant_rate": over_seeds(
                {
                    seed: _at_constant_rate(unit, full[seed], speeds[arm], speeds["full"], tokens)
                    for seed, unit in found[arm].items()
                    if seed in full
                }
            ),
        }

    def table(self, result: dict) -> str:
        lines = [
            "| arm | active | all | bits per byte | equal tokens | tokens in equal time | equal time | equal time, constant rate |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for arm, row in result["arms"].items():
            timed = row.get("equal_time") or {}
            ratio = f"{timed['tokens_ratio']:.2f}" if timed else "-"
            differences = [row["difference"], timed.get("difference"), timed.get("difference_at_constant_rate")]
            equal, time, constant = (said(x, sign=True) for x in differences) if arm != "full" else ("-", "-", "-")
            lines.append(
                f"| {arm} | {row['sizes']['active']:,} | {row['sizes']['total']:,} | {said(row['bits_per_byte'])} "
                f"| {equal} | {ratio} | {time} | {constant} |"
            )
        return "\n".join(lines)

    def draw(self, result: dict) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 5), layout="constrained")
        left, right = figure.subplots(1, 2, sharey=True)
        arms = [arm for arm in result["arms"] if arm != "full"][::-1]
        rows = [result["arms"][arm] for arm in arms]
        panels = {
            "equal tokens": (left, [row["difference"] for row in rows]),
            "equal time": (right, [(row.get("equal_time") or {}).get("difference") for row in rows]),
        }
        for title, (axes, values) in panels.items():
            for place, value in enumerate(values):
                if value is not None:
                    axes.barh(place, value["mean"], xerr=value["half_width"], color="tab:red" if value["mean"] > 0 else "tab:green")
            axes.set_title(f"bits per byte against all of V4, {title}")
            axes.axvline(0, color="black", linewidth=0.8)
            axes.grid(axis="x", alpha=0.3)
        left.set_yticks(range(len(arms)), [result["arms"][arm]["said"] for arm in arms])
        figure.supxlabel("above 0: worse than all of V4; bars are 95 % intervals over seeds")
        return figure


@cache
def fitted(arm: str) -> dict[str, Any]:
    """The fields of `micro` that an arm changes, among them the width that makes up for what it lacks."""
    model, width, target = ARMS[arm].model, ARMS[arm].width, sizes(_config({}))["active"]
    if sizes(_config(model))["active"] == target:
        return model
    return model | {width: match_active(lambda w: _config(model | {width: w}), target)}


def _config(model: dict[str, Any]) -> ModelConfig:
    return micro_recipe("", 0, one_stage(1), model).model_config()


def _last(units: dict[int, dict]) -> dict[int, float]:
    """seed -> the last score, as the model is used: with its own selection."""
    return {seed: unit["held_out"]["sparse"] for seed, unit in units.items()}


def _at_constant_rate(unit: dict, full: dict, speed: dict[str, dict], full_speed: dict[str, dict], tokens: int) -> float:
    """Difference of two curves at the latest time at which both train at the full rate: when the faster one's begins to fall."""
    rates = [by_mode["dense"]["tokens_per_second"] for by_mode in (speed, full_speed)]
    at = STABLE * SHARES["dense"] * tokens / max(rates)
    ours, theirs = (
        _read([(p["tokens"] / rate, p["bits_per_byte"]) for p in run["points"] if p["stage"] == "dense"], at)
        for run, rate in zip((unit, full), rates, strict=True)
    )
    return ours - theirs


def _read(points: list[tuple[float, float]], at: float) -> float:
    """A curve's value at a time, between two points on a line over log(time); before the first or after the last, that point."""
    for (t0, y0), (t1, y1) in zip(points, points[1:], strict=False):
        if t0 <= at <= t1:
            share = (math.log(at) - math.log(t0)) / (math.log(t1) - math.log(t0))
            return y0 + share * (y1 - y0)
    return points[0][1] if at < points[0][0] else points[-1][1]


if __name__ == "__main__":
    Ablation().main()
