"""Balance of the experts by a bias (V3), by a loss (V2, sigmoid or softmax scores), or by neither, on preset `micro`.

python experiments/balance/run.py [--seeds 0 1] [--tokens N] [--only ARM ...]

Without indexer and multi-token prediction, dense attention throughout. The load of an expert is how many choices of a training
step fell on it, over its layer's mean; an expert counts as unused when, over the last fifth of the steps, it had less than a tenth
of the mean.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from experiments.lib.runs import curve, forget, last_score, micro_recipe, one_stage, settings_of, trained
from experiments.lib.sizes import sizes
from experiments.lib.stats import over_seeds, paired, said
from experiments.lib.study import Found, Study, Unit
from fourfold.model.experts import Router
from fourfold.training.recipes import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LAST, UNUSED = 0.2, 0.1
BARE: dict[str, Any] = {"selection": None, "num_nextn_predict_layers": 0}
NO_BIAS = {"topk_method": "greedy", "bias_update_speed": 0.0}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "bias": ("bias, 0.01 a step", {"aux_loss_alpha": 0.0}),
    "loss-sigmoid": ("loss, weight 0.01, sigmoid scores", NO_BIAS | {"aux_loss_alpha": 0.01}),
    "loss-softmax": ("loss, weight 0.01, softmax scores", NO_BIAS | {"aux_loss_alpha": 0.01, "scoring_func": "softmax"}),
    "neither": ("neither", NO_BIAS | {"aux_loss_alpha": 0.0}),
    "bias-and-loss": ("bias and loss of weight 0.0001, as V3", {"aux_loss_alpha": 1e-4}),
}


class Balance(Study):
    name, tokens, seeds = "balance", 300_000, (0, 1)
    arms = tuple(ARMS)

    def rank(self, arm: str, seed: int) -> int:
        return 12 + seed

    def recipe(self, arm: str, seed: int, tokens: int) -> Recipe:
        return micro_recipe(f"balance-{arm}", seed, one_stage(tokens), BARE | ARMS[arm][1])

    def settings(self, arm: str, seed: int, tokens: int) -> dict:
        return settings_of(self.recipe(arm, seed, tokens))

    def measure(self, unit: Unit, tokens: int) -> dict:
        recipe = self.recipe(unit.arm, unit.seed, tokens)
        forget(unit.folder)  # the loads of a run that was stopped are gone, so it begins anew
        with watched_loads() as loads:
            model = trained(recipe, unit.folder)
        relative = [steps / steps.mean(1, keepdim=True) for steps in map(torch.stack, loads.values())]  # a layer: [steps, E]
        last = [layer[-max(round(LAST * len(layer)), 1) :].mean(0) for layer in relative]
        result = {
            "sizes": sizes(recipe.model_config()),
            "held_out": last_score(model),
            "max_load": [[round(x, 3) for x in layer.amax(1).tolist()] for layer in relative],
            "last_loads": [[round(x, 3) for x in layer.tolist()] for layer in last],
        } | curve(unit.folder)
        forget(unit.folder)
        return result

    def merge(self, found: Found, tokens: int) -> dict:
        rows = {}
        base = _last(found.get("bias", {}))
        for arm in [arm for arm in ARMS if arm in found]:
            units = found[arm]
            rows[arm] = {
                "said": ARMS[arm][0],
                "sizes": next(iter(units.values()))["sizes"],
                "bits_per_byte": over_seeds(_last(units)),
                "difference_to_bias": paired(_last(units), base),
                "max_load_of_the_last_fifth": [
                    over_seeds({seed: _mean_of_last(u["max_load"][layer]) for seed, u in units.items()})
                    for layer in range(len(next(iter(units.values()))["max_load"]))
                ],
                "unused": over_seeds(
                    {seed: sum(x < UNUSED for layer in u["last_loads"] for x in layer) for seed, u in units.items()}
                ),
                "experts": sum(map(len, next(iter(units.values()))["last_loads"])),
                "max_load": {seed: u["max_load"] for seed, u in units.items()},
                "last_loads": {seed: u["last_loads"] for seed, u in units.items()},
            }
        return {"arms": rows}

    def table(self, result: dict) -> str:
        lines = [
            "| balance | bits per byte | against the bias | max load / mean, by layer | unused experts |",
            "|---|---|---|---|---|",
        ]
        for arm, row in result["arms"].items():
            loads = ", ".join(f"{layer['mean']:.2f}" for layer in row["max_load_of_the_last_fifth"])
            difference = "-" if arm == "bias" else said(row["difference_to_bias"], sign=True)
            unused = f"{row['unused']['mean']:.1f} of {row['experts']}"
            lines.append(f"| {row['said']} | {said(row['bits_per_byte'])} | {difference} | {loads} | {unused} |")
        return "\n".join(lines)

    def draw(self, result: dict) -> "Figure":
        from matplotlib.figure import Figure

        layers = max(len(row["max_load_of_the_last_fifth"]) for row in result["arms"].values())
        figure = Figure(figsize=(4 * layers, 4), layout="constrained")
        for layer, axes in enumerate(figure.subplots(1, layers, sharey=True, squeeze=False)[0]):
            for row in result["arms"].values():
                loads = row["max_load"][min(row["max_load"])][layer]
                axes.plot(_smooth(loads), linewidth=1, label=row["said"])
            axes.set_title(f"layer {layer + 1} with experts" if layer else "first layer with experts", fontsize=10)
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
            if layer == 0:
                axes.set_ylabel("highest load of an expert over the mean (1: even)")
                axes.legend(fontsize=8)
        return figure


@contextmanager
def watched_loads() -> Iterator[dict[int, list[Tensor]]]:
    """What the routers choose in training steps: for each router, in order, the counts [E] of every forward with gradients."""
    loads: dict[int, list[Tensor]] = {}

    def note(module: nn.Module, inputs: tuple, output: Any) -> None:
        if isinstance(module, Router) and torch.is_grad_enabled():
            counts = torch.bincount(output[0].flatten(), minlength=module.config.n_routed_experts)
            loads.setdefault(id(module), []).append(counts.float())

    hook = register_module_forward_hook(note)
    try:
        yield loads
    finally:
        hook.remove()


def _last(units: dict[int, dict]) -> dict[int, float]:
    return {seed: unit["held_out"]["sparse"] for seed, unit in units.items()}


def _mean_of_last(values: list[float]) -> float:
    last = values[-max(round(LAST * len(values)), 1) :]
    return sum(last) / len(last)


def _smooth(values: list[float], over: int = 5) -> list[float]:
    return [sum(values[max(i - over + 1, 0) : i + 1]) / len(values[max(i - over + 1, 0) : i + 1]) for i in range(len(values))]


if __name__ == "__main__":
    Balance().main()
