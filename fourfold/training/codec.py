"""Training of the picture and clip codec: `fourfold train codec`, a run like any other, with losses of its own."""

import hashlib
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor

from fourfold.errors import CheckpointError, ConfigError, FourfoldError
from fourfold.media.codec import Codec, CodecConfig, psnr
from fourfold.parts import Part
from fourfold.training.codec_data import CodecData, as_numbers
from fourfold.training.folders import read_json, run_folder
from fourfold.training.loop import Run, Summary, carry_out
from fourfold.training.optim import Amount, Optimizer, OptimizerSettings, Positive
from fourfold.training.plots import draw_plots
from fourfold.training.progress import Reporter
from fourfold.training.schedule import warmup_cosine

NAME = "codec"
EDGES = 0.1  # weight of the differences between neighbouring pixels: more makes sharper pictures, and larger errors
SQUARES = 2.0  # weight of the squared error
AT_ONCE = 32  # clips that are evaluated together
MEASURES = {
    "held_out_psnr_large": "pictures of 64 pixels",
    "held_out_psnr_reduced": "the same at 32 pixels",
    "held_out_psnr_small": "pictures of 28 pixels, enlarged to 32",
    "held_out_psnr_clips": "frames of clips of 32 pixels",
}
PLOTS = {
    "loss.png": ("Loss", ("loss", "absolute", "squared", "edges"), True),
    "psnr.png": ("PSNR of held-out pictures and clips (dB)", ("held_out_psnr", *MEASURES), False),
}
CARD = """---
license: apache-2.0
library_name: fourfold
---
# codec

Pictures and clips as codes, {bits:g} bits for each {side} x {side} pixels of a frame, and back: {parameters:,} parameters, trained
by Fourfold's recipe `codec` on the pictures and clips of `{corpus}`: {steps:,} steps, {codes:,} codes, seed {seed}.
It knows emoji, clothes and little figures in motion; of anything else it keeps the colours and the rough shape.

```python
from fourfold.media.codec import Codec

codec = Codec.load("codec")
# fp32 [clips, frames, 3, height, width] in 0..1 -> int64 [clips, frames, height / {side}, width / {side}]
codes = codec.encode(clips)
again = codec.decode(codes)
```

| held out | PSNR, dB, mean of each picture's |
|---|---|
{results}
"""


class CodecRecipe(Part):
    """Everything that decides a run. A step reads so many `pixels`, as many of clips as of each kind of picture; `eval_every` and
    `checkpoint_every` are in steps (0: at the end only); `item_stride` n takes each n-th picture and clip only.
    """

    corpus: str = "tiny-omni"
    model: CodecConfig = Field(default_factory=CodecConfig)
    steps: PositiveInt = 3000
    pixels: PositiveInt = 98_304
    lr: Positive = 6e-3
    weight_decay: Amount = 0.01
    warmup: float = Field(0.05, ge=0, le=1)
    final: float = Field(0.01, ge=0, le=1)
    seed: NonNegativeInt = 0
    threads: NonNegativeInt = 0
    item_stride: PositiveInt = 1
    eval_every: NonNegativeInt = 300
    eval_items: PositiveInt = 64
    checkpoint_every: NonNegativeInt = 300

    @property
    def name(self) -> str:
        return NAME

    def rate(self, step: int) -> float:
        """Learning rate of a 0-based step."""
        return self.lr * warmup_cosine(step, self.steps, round(self.warmup * self.steps), 0, self.final)

    def tokens_by(self, step: int) -> int:
        """What the first `step` steps read, counted in codes."""
        return step * self.pixels // self.model.downsample**2


def override(recipe: CodecRecipe, settings: list[str]) -> CodecRecipe:
    """Apply `key=value` settings, such as `steps=500` or `model.levels=8,5,5,5`. Raises ConfigError."""
    changes: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise ConfigError(f"--set {setting}: has no value; write key=value")
        changes[key] = _parse(text)
    return recipe.but(**changes)


def train(recipe: CodecRecipe, out: Path | None = None, resume: bool = False, steps: int | None = None) -> Summary:
    """Train a codec into the folder `out`, for at most `steps` steps in all; as `loop.train`, with its errors."""
    folder = run_folder(NAME, out, resume)
    if resume:
        recipe = _written(folder / "recipe.json")
    return carry_out(CodecRun, recipe, folder, resume, steps)


class CodecRun(Run):
    """A codec, its optimiser and its data at some step; how it is described, restored and stopped is that of every run."""

    recipe: CodecRecipe
    data: CodecData
    model: Codec

    def __init__(self, recipe: CodecRecipe, folder: Path, reporter: Reporter) -> None:
        self.recipe, self.folder, self.reporter = recipe, folder, reporter
        self.step = 0
        self.row: dict = {}
        self.data = CodecData.open(recipe.corpus, recipe.model.downsample, recipe.item_stride, recipe.eval_items)
        if not self.data.held_out:
            reporter.say(f"note: corpus {recipe.corpus} has no held_out pictures; the run is not evaluated")
        self.model = Codec(recipe.model).init_weights(recipe.seed)
        self.optimizer = Optimizer(self.model, OptimizerSettings(lr=recipe.lr, weight_decay=recipe.weight_decay))
        self.made_of = {NAME: recipe.model_dump(mode="json")}
        self.digest = hashlib.sha256(json.dumps(self.made_of, sort_keys=True).encode()).hexdigest()

    def advance(self, total: int) -> None:
        """One optimiser step, and its row of metrics."""
        began = time.monotonic()
        batch = self.data.batch(self.step, self.recipe.seed, self.recipe.pixels)
        terms: dict[str, float] = {}
        for clips in batch:
            for name, value in self._learn(clips, 1 / len(batch)).items():
                terms[name] = terms.get(name, 0.0) + value / len(batch)
        lr = self.recipe.rate(self.step)
        norm, _ = self.optimizer.step(lr)
        self.step += 1
        if not math.isfinite(terms["loss"] + norm):
            raise FourfoldError(f"step {self.step}: the loss or its gradient is not finite; start again with a lower lr")
        seconds = time.monotonic() - began
        self.row = {
            "step": self.step, "stage": NAME, **terms, "lr": lr, "grad_norm": norm, "tokens": self.recipe.tokens_by(self.step),
            "tokens_per_second": round(self.recipe.tokens_by(1) / seconds, 1),
            "images_per_second": round(sum(clips.shape[0] * clips.shape[1] for clips in batch) / seconds, 1),
        }  # fmt: skip
        every = self.recipe.eval_every
        if self.data.held_out and (self.step == total or (every and self.step % every == 0)):
            self.row |= self.evaluate()
        self.record()

    def _learn(self, clips: Tensor, share: float) -> dict[str, float]:
        """Add the gradients of some clips, of which the step's loss has this share; returns the terms of their loss."""
        off = self.model(clips) - clips
        terms = {
            "absolute": off.abs().mean(),
            "squared": off.square().mean(),
            "edges": off.diff(dim=-1).abs().mean() + off.diff(dim=-2).abs().mean(),
        }
        loss = terms["absolute"] + SQUARES * terms["squared"] + EDGES * terms["edges"]
        (loss * share).backward()
        return {name: term.item() for name, term in {"loss": loss, **terms}.items()}

    def evaluate(self) -> dict[str, float]:
        """PSNR of held-out pictures and clips, over all pools and of each, and the entropy of their codes in bits."""
        found, counts = {}, torch.zeros(self.model.codes, dtype=torch.long)
        for name, pool in self.data.held_out.items():
            values = []
            for part in pool.split(max(AT_ONCE // pool.shape[1], 1)):
                clips = as_numbers(part)
                codes = self.model.encode(clips)
                counts += torch.bincount(codes.flatten(), minlength=self.model.codes)
                values.append(psnr(self.model.decode(codes), clips).flatten())
            found[f"held_out_psnr_{name}"] = torch.cat(values).mean().item()
        shares = counts[counts > 0] / counts.sum()
        mean = sum(found.values()) / len(found)
        return {"held_out_psnr": mean, **found, "held_out_code_bits": -(shares * shares.log2()).sum().item()}

    def finish(self) -> None:
        """Plots, and the codec as a folder that `Codec.load` reads."""
        draw_plots(self.folder, PLOTS)
        self.model.eval().save(self.folder / "model", self._card())

    def _card(self) -> str:
        config = self.recipe.model
        results = [f"| {said} | {self.row[name]:.2f} |" for name, said in MEASURES.items() if name in self.row]
        return CARD.format(
            bits=round(math.log2(self.model.codes), 2), side=config.downsample, corpus=self.recipe.corpus, seed=self.recipe.seed,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()), steps=self.step,
            codes=self.row["tokens"], results="\n".join(results) or "| not evaluated | |",
        )  # fmt: skip


def _written(file: Path) -> CodecRecipe:
    """The recipe that a run began with. Raises CheckpointError."""
    try:
        return CodecRecipe(**read_json(file, **{NAME: dict})[NAME])
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}; put the recipe back that the run began with") from None


def _parse(text: str) -> Any:
    """The value meant by `text`: read as JSON, or as a list of it, else as it stands."""
    for attempt in (text, text.replace("_", ""), f"[{text}]"):
        try:
            return json.loads(attempt)
        except ValueError:
            continue
    return text
