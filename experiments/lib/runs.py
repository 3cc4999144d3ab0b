"""One arm of a study on preset `micro`: its recipe, its training (resumed where it was left), its curve and its last score."""

import dataclasses
import itertools
import shutil
import statistics
from pathlib import Path
from typing import Any

import torch

import fourfold
from fourfold.data.corpus import Corpus
from fourfold.data.packing import PackedTokens
from fourfold.model.transformer import Transformer
from fourfold.training import recipes
from fourfold.training.loop import train
from fourfold.training.metrics import bits_per_byte
from fourfold.training.optim import OptimizerSettings
from fourfold.training.plots import read_metrics
from fourfold.training.recipes import Recipe, Stage

CORPUS = "tiny-text"
LENGTH, ROWS = 256, 8  # of a training step: short rows, so that few tokens are many steps
LR = 4e-3
EVALUATIONS = 12  # on the way
SHARES = {"dense": 0.7, "indexer": 0.1, "sparse": 0.2}  # of a run's tokens


def micro_recipe(name: str, seed: int, stages: tuple[Stage, ...], model: dict[str, Any], **changes: Any) -> Recipe:
    """Preset `micro` on tiny-text in fp32, on one thread, so that a run gives the same whatever runs beside it.

    `model`: fields to change by their published names. `optimizer`, among `changes`, may be a dict of settings.
    """
    settings = OptimizerSettings(**{"lr": LR, **changes.pop("optimizer", {})})
    base = recipes.recipe("micro")
    recipe = dataclasses.replace(
        base, name=name, corpus=CORPUS, stages=stages, model=base.model | model, optimizer=settings, seed=seed, threads=1,
        dtype="float32", sequence_length=changes.pop("sequence_length", LENGTH), batch_size=changes.pop("batch_size", ROWS),
        eval_rows=48, checkpoint_every=50, **changes,
    )  # fmt: skip
    return dataclasses.replace(recipe, eval_every=max(recipe.steps // EVALUATIONS, 1))


def three_stages(tokens: int, has_indexer: bool = True) -> tuple[Stage, ...]:
    """Dense, indexer alone, sparse, as in recipe `micro`, in the shares above; without an indexer the first and third alone, both
    dense, at the same rates: the second would train nothing.
    """
    stages = recipes.recipe("micro").stages
    sized = [dataclasses.replace(stage, tokens=round(SHARES[stage.mode] * tokens)) for stage in stages]
    if has_indexer:
        return tuple(sized)
    return tuple(dataclasses.replace(stage, mode="dense") for stage in sized if stage.mode != "indexer")


def one_stage(tokens: int) -> tuple[Stage, ...]:
    """Dense attention throughout."""
    return (Stage("dense", "dense", tokens=tokens),)


def settings_of(recipe: Recipe) -> dict:
    """What decides a run, for a unit's settings: the recipe and the sizes that it makes."""
    return {"recipe": recipes.to_dict(recipe), "model": recipe.model_config().to_flat()}


def trained(recipe: Recipe, folder: Path) -> Path:
    """Train into `folder`, going on from where an earlier try was stopped; returns the folder of the model.

    A Ctrl-C or termination saves a checkpoint and then raises KeyboardInterrupt.
    """
    summary = train(recipe, out=folder, resume=(folder / "recipe.json").is_file())
    if summary.interrupted:
        raise KeyboardInterrupt
    return folder / "model"


def curve(folder: Path) -> dict:
    """From a run's metrics: held-out bits per byte at each evaluation, seconds of training without evaluation, speed by stage."""
    rows = read_metrics(folder / "metrics.jsonl")
    sizes = [after["tokens"] - before["tokens"] for before, after in itertools.pairwise([{"tokens": 0}, *rows])]
    seconds = list(itertools.accumulate(size / row["tokens_per_second"] for size, row in zip(sizes, rows, strict=True)))
    speeds: dict[str, list[float]] = {}
    for row in rows:
        speeds.setdefault(row["stage"], []).append(row["tokens_per_second"])
    points = [
        {"tokens": row["tokens"], "seconds": round(at, 2), "stage": row["stage"], "bits_per_byte": row["held_out_bits_per_byte"]}
        for row, at in zip(rows, seconds, strict=True)
        if row.get("held_out_bits_per_byte") is not None
    ]
    return {
        "points": points,
        "seconds": round(seconds[-1], 1),
        "tokens": rows[-1]["tokens"],
        "tokens_per_second": {stage: round(statistics.median(values), 1) for stage, values in speeds.items()},
    }


def score(model: Transformer, length: int = LENGTH, rows: int = 256, selection: str = "sparse", at_once: int = 8) -> float:
    """Bits per byte over `rows` rows spread evenly over the held-out split, the same rows for every seed."""
    packed = PackedTokens(Corpus.open(CORPUS), model.tokenizer, length, "held_out")
    numbers = [i * packed.rows // rows for i in range(min(rows, packed.rows))]
    token_bytes = torch.tensor([len(model.tokenizer.bytes_of(i)) for i in range(model.tokenizer.vocab_size)])
    batches = (packed.take(numbers[i : i + at_once]) for i in range(0, len(numbers), at_once))
    return bits_per_byte(model, batches, token_bytes, selection)["bits_per_byte"]


def last_score(model_folder: Path) -> dict:
    """`sparse` and `dense` bits per byte of a saved model; a model without an indexer has one figure for both."""
    model = fourfold.load(str(model_folder), dtype="float32")
    dense = score(model, selection="dense")
    return {"sparse": dense if model.config.selection is None else score(model), "dense": dense}


def forget(folder: Path) -> None:
    """Remove a run of which everything wanted is written down elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)
