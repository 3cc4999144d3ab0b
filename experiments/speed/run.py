"""Training steps of nano's variants timed in turn in one process: what each part of V4 costs, against a plain MoE.

python experiments/speed/run.py [--rows 8] [--length 512] [--only 1x4096 ...]

A step is forward, backward and optimiser, weights in bf16 with fp32 masters, on rows of tiny-text, routed as the router decides; no
token is dropped. Medians of clean samples: those during which others took more than 12 % of a core are measured again.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from experiments.lib.sizes import sizes
from experiments.lib.study import Found, Study, Unit
from experiments.lib.timing import Trainee, interleaved
from fourfold.config import ModelConfig
from fourfold.model.transformer import Transformer
from fourfold.paths import home
from fourfold.presets import preset
from fourfold.training import recipes
from fourfold.training.data import TrainingData
from fourfold.training.objective import Mode
from fourfold.training.optim import OptimizerSettings

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ROUNDS = 7
LR = 1e-3
THREADS = torch.get_num_threads()  # before a study takes one
BARE: dict[str, Any] = {"streams": None, "memory": None, "selection": None, "num_nextn_predict_layers": 0}
MODELS: dict[str, tuple[str, ...]] = {  # which of the parts in BARE a model keeps
    "bare MoE": (),
    "+ mHC": ("streams",),
    "+ Engram": ("memory",),
    "+ indexer": ("selection",),
    "V4 without MTP": ("streams", "memory", "selection"),
    "V4": tuple(BARE),
}
DENSE = "dense reference"
VARIANTS: tuple[tuple[str, Mode], ...] = (
    ("bare MoE", "dense"),
    (DENSE, "dense"),
    ("+ mHC", "dense"),
    ("+ Engram", "dense"),
    ("+ indexer", "dense"),
    ("+ indexer", "indexer"),
    ("+ indexer", "sparse"),
    ("V4 without MTP", "dense"),
    ("V4 without MTP", "sparse"),
    ("V4", "dense"),
    ("V4", "sparse"),
)


class Speed(Study):
    name, tokens, seeds = "speed", ROUNDS, (0,)
    arms = ("8x512",)

    def rank(self, arm: str, seed: int) -> int:
        return 0

    def is_alone(self, arm: str) -> bool:
        return True

    def settings(self, arm: str, seed: int, tokens: int) -> dict:
        models = {name: config_of(name).to_flat() for name in (*MODELS, DENSE)}
        return {"shape": arm, "rounds": tokens, "models": models}

    def measure(self, unit: Unit, tokens: int) -> dict:
        torch.set_num_threads(THREADS)
        rows, length = map(int, unit.arm.split("x"))
        stages = (recipes.Stage("dense", "dense", tokens=1000 * rows * length),)
        recipe = recipes.Recipe("speed", "nano", stages, sequence_length=length, batch_size=rows, seed=unit.seed)
        data = TrainingData.open(recipe)
        trainees = {}
        for name in (*MODELS, DENSE):
            model = Transformer(data.fit(config_of(name)), data.token_classes).init_weights(unit.seed)
            trainees[name] = Trainee(model, OptimizerSettings(lr=LR), torch.bfloat16)
        variants = {f"{name}, {mode}": (trainees[name], mode) for name, mode in VARIANTS}
        timed = interleaved(variants, data.batch, tokens)
        return {"variants": timed, "sizes": {name: sizes(config_of(name)) for name in (*MODELS, DENSE)}}

    def merge(self, found: Found, tokens: int) -> dict:
        shapes = {arm: units[0]["variants"] for arm, units in found.items()}
        for timed in shapes.values():
            bare = timed[f"{VARIANTS[0][0]}, {VARIANTS[0][1]}"]["tokens_per_second"]
            for row in timed.values():
                row["ratio"] = round(row["tokens_per_second"] / bare, 3)
        return {"rounds": tokens, "sizes": next(iter(found.values()))[0]["sizes"], "shapes": shapes}

    def table(self, result: dict) -> str:
        lines = []
        for shape, timed in result["shapes"].items():
            lines += [
                f"| {shape} tokens a step | tokens/s | of bare | ms | forward, backward | optimiser | samples, dropped |",
                "|---|---|---|---|---|---|---|",
            ]
            for name, row in timed.items():
                speed, spent = (
                    f"{row['tokens_per_second']:,.0f} | {row['ratio']:.2f}",
                    ("ms", "ms_forward_backward", "ms_optimiser"),
                )
                times = " | ".join(f"{row[kind]:,.0f}" for kind in spent)
                lines.append(f"| {name} | {speed} | {times} | {row['samples']}, {row['dropped']} |")
        return "\n".join(lines)

    def draw(self, result: dict) -> "Figure":
        from matplotlib.figure import Figure

        shapes = result["shapes"]
        figure = Figure(figsize=(6 * len(shapes) + 2, 4.5), layout="constrained")
        for axes, (shape, timed) in zip(figure.subplots(1, len(shapes), squeeze=False)[0], shapes.items(), strict=True):
            names = list(timed)[::-1]
            optimiser = [timed[name]["ms_optimiser"] for name in names]
            axes.barh(names, [timed[name]["ms_forward_backward"] for name in names], label="forward and backward")
            axes.barh(names, optimiser, left=[timed[name]["ms_forward_backward"] for name in names], label="optimiser")
            axes.set(title=f"{shape} tokens a step", xlabel="ms")
            axes.legend(fontsize=8)
            axes.grid(axis="x", alpha=0.3)
        return figure

    def known_arms(self) -> tuple[str, ...]:
        """The usual shape, and whatever else has been measured."""
        stems = (file.stem.partition("-")[0] for file in (home() / "studies" / self.name).glob("*x*-seed*.json"))
        return tuple(dict.fromkeys((*self.arms, *sorted(stems))))

    def parser(self) -> argparse.ArgumentParser:
        parser = super().parser()
        parser.add_argument("--rows", type=int, help="of a batch; with --length, instead of --only")
        parser.add_argument("--length", type=int, help="tokens of a row")
        return parser

    def main(self, arguments: Sequence[str] | None = None) -> None:
        args, given = self.parser().parse_args(arguments), list(sys.argv[1:] if arguments is None else arguments)
        shape = [f"{args.rows or 8}x{args.length or 512}"] if args.rows or args.length else []
        super().main([*given, "--only", *shape] if shape else given)


def config_of(name: str) -> ModelConfig:
    """nano with the parts that a variant keeps; the dense reference has as many active parameters as nano with all of them."""
    if name == DENSE:
        return preset("nano-dense")
    nano = preset("nano")
    return nano.but(**{part: value for part, value in BARE.items() if part not in MODELS[name]})


if __name__ == "__main__":
    Speed().main()
