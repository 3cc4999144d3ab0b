"""Training the lightning indexer alone: its rate and its heads, against what it must beat (preset `micro`, rows of 1,024 tokens).

python experiments/indexer/run.py [--seeds 0 1] [--tokens N] [--only ARM ...]

A dense model is trained for each seed (three quarters of the tokens), then from its weights the indexers alone, at a learning rate
of 0.002 times 1, 10 or 30, with two or four heads. Captured mass is the share of the dense attention's probability, mean over
heads, that lies on the k keys chosen, over held-out queries that see more than k (a row is of one document): chosen by the
indexer, by the attention itself (oracle: no choice of k holds more), as the last k tokens, and by the same indexer untrained.
"""

import dataclasses
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch

import fourfold
from experiments.lib.runs import CORPUS, forget, micro_recipe, one_stage, score, settings_of, trained
from experiments.lib.stats import over_seeds, said
from experiments.lib.study import Found, Study, Unit
from fourfold.data.corpus import Corpus
from fourfold.evals.indexer import WAYS, captured, long_rows
from fourfold.formats import ours
from fourfold.model.inputs import Batch
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from fourfold.paths import home
from fourfold.training.losses import indexer_loss
from fourfold.training.plots import read_metrics
from fourfold.training.recipes import Recipe, Stage, to_dict

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LENGTH, ROWS = 1024, 2
BASE_SHARE = 0.75  # of a unit's tokens, on the dense model that all arms of a seed share
RATE = 2e-3
ARMS = {f"heads{heads}-rate{scale}": (heads, scale) for scale in (10, 1, 30) for heads in (2, 4)}
TOPK = (64, 128)
JUDGED_ROWS = 24  # held-out rows for the captured mass


class IndexerStudy(Study):
    name, tokens, seeds = "indexer", 400_000, (0, 1)
    arms = tuple(ARMS)

    def rank(self, arm: str, seed: int) -> int:
        """The first arm of every seed early, since it trains what the seed's other arms wait for."""
        return 11 if arm == self.arms[0] else 12 + seed

    def base_recipe(self, seed: int, tokens: int) -> Recipe:
        stages = one_stage(round(BASE_SHARE * tokens))
        return micro_recipe("indexer-base", seed, stages, {"num_nextn_predict_layers": 0}, sequence_length=LENGTH, batch_size=ROWS)

    def recipe(self, arm: str, seed: int, tokens: int, init: str = "") -> Recipe:
        heads, scale = ARMS[arm]
        stages = (Stage("indexer", "indexer", tokens=round((1 - BASE_SHARE) * tokens), lr=RATE),)
        model = {"num_nextn_predict_layers": 0, "index_n_heads": heads}
        changes = {"sequence_length": LENGTH, "batch_size": ROWS, "optimizer": {"indexer_lr_scale": float(scale)}}
        return dataclasses.replace(micro_recipe(f"indexer-{arm}", seed, stages, model, **changes), eval_every=0, init=init)

    def settings(self, arm: str, seed: int, tokens: int) -> dict:
        return settings_of(self.recipe(arm, seed, tokens)) | {"base": to_dict(self.base_recipe(seed, tokens))}

    def measure(self, unit: Unit, tokens: int) -> dict:
        base = self.base(unit.seed, tokens)
        start = unit.folder.with_name(unit.folder.name + "-start")
        recipe = self.recipe(unit.arm, unit.seed, tokens, init=str(start))
        if not (start / "config.json").is_file():
            ours.save(with_heads(base, recipe), start, fourfold.load_tokenizer(base))
        before, after = (fourfold.load(folder, dtype="float32") for folder in (start, trained(recipe, unit.folder)))
        rows = read_metrics(unit.folder / "metrics.jsonl")
        result = {
            "kl": [row["indexer_kl"] for row in rows],
            "dead": [row["indexer_dead"] for row in rows],
            "layers": judged_layers(before, after),
            "bits_per_byte": {
                "dense": score(after, LENGTH, 64, "dense", ROWS),
                "sparse": score(after, LENGTH, 64, "sparse", ROWS),
                "sparse_untrained": score(before, LENGTH, 64, "sparse", ROWS),
            },
        }
        forget(unit.folder)
        forget(start)
        return result

    def base(self, seed: int, tokens: int) -> Path:
        """The dense model of a seed, trained once; whoever comes second waits."""
        recipe = self.base_recipe(seed, tokens)
        folder = home() / "studies" / self.name / "runs" / Unit(self.name, "base", seed, settings_of(recipe)).stem
        with locked(folder.with_suffix(".lock")):
            done = folder / "model"
            return done if (done / "config.json").is_file() else trained(recipe, folder)

    def merge(self, found: Found, tokens: int) -> dict:
        return {"topk": TOPK, "arms": {arm: merged(found[arm]) for arm in self.arms if arm in found}}

    def table(self, result: dict) -> str:
        ks = [str(k) for k in result["topk"]]
        lines = [
            "| arm | KL, first and last (summed) | dead queries, worst layer | "
            + " | ".join(f"mass at k = {k}: {', '.join(WAYS)}" for k in ks)
            + " |",
            "|---|---|---|" + "---|" * len(ks),
        ]
        for arm, row in result["arms"].items():
            masses = [", ".join(f"{row['captured'][k][way]['mean']:.3f}" for way in WAYS) for k in ks]
            kl = f"{row['kl_first']['mean']:.2f} -> {said(row['kl_last'], 2)}"
            lines.append(f"| {arm} | {kl} | {row['dead']['mean']:.1%} | " + " | ".join(masses) + " |")
        return "\n".join(lines)

    def draw(self, result: dict) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(11, 4.5), layout="constrained")
        left, right = figure.subplots(1, 2)
        for arm, row in sorted(result["arms"].items()):
            left.plot(row["course"]["kl"], linewidth=1, label=arm)
        left.set(title="KL to the attention, summed over the layers", xlabel="step", yscale="log")
        left.legend(fontsize=8)
        k = str(result["topk"][0])
        arm, best = max(result["arms"].items(), key=lambda item: item[1]["captured"][k]["indexer"]["mean"])
        for way in WAYS:
            right.plot([layer[k][way]["mean"] for layer in best["by_layer"]], "o-", label=way)
        right.set(title=f"attention mass on {k} chosen keys; {arm}", xlabel="layer", ylim=(0, 1.02))
        right.legend(fontsize=8)
        for axes in (left, right):
            axes.grid(alpha=0.3)
        return figure


def merged(units: dict[int, dict]) -> dict:
    """One arm over its seeds; `by_layer` from the first layer on, `course` that of the lowest seed."""
    first = units[min(units)]
    layers = range(len(first["layers"]))

    def mass(k: str, way: str, chosen: range) -> dict | None:
        return over_seeds(
            {seed: sum(u["layers"][i]["captured"][k][way] for i in chosen) / len(chosen) for seed, u in units.items()}
        )

    def at(i: int) -> dict:
        return {str(k): {way: mass(str(k), way, range(i, i + 1)) for way in WAYS} for k in TOPK}

    return {
        "kl_first": over_seeds({seed: u["kl"][0] for seed, u in units.items()}),
        "kl_last": over_seeds({seed: sum(u["kl"][-5:]) / len(u["kl"][-5:]) for seed, u in units.items()}),
        "dead": over_seeds({seed: u["dead"][-1] for seed, u in units.items()}),
        "kl_held_out": over_seeds({seed: sum(layer["kl"] for layer in u["layers"]) for seed, u in units.items()}),
        "captured": {str(k): {way: mass(str(k), way, layers) for way in WAYS} for k in TOPK},
        "by_layer": [at(i) for i in layers],
        "bits_per_byte": {
            kind: over_seeds({s: u["bits_per_byte"][kind] for s, u in units.items()}) for kind in first["bits_per_byte"]
        },
        "course": {"kl": first["kl"], "dead": first["dead"]},
    }


def with_heads(base: Path, recipe: Recipe) -> Transformer:
    """The base's weights in a model of the recipe's index heads, whose indexers are new. Frozen in dense training, indexers leave
    the other weights as they would be beside any number of heads.
    """
    trained_base = ours.load(base, dtype="float32")
    config = trained_base.config.but(selection=recipe.model_config().selection)
    model = Transformer(config, trained_base.token_classes).init_weights(recipe.seed)
    kept = {name: value for name, value in trained_base.state_dict().items() if ".indexer." not in name}
    model.load_state_dict(model.state_dict() | kept)
    return model


@torch.inference_mode()
def judged_layers(before: Transformer, after: Transformer) -> list[dict]:
    """For each layer, means over held-out rows of one document each: KL, and captured mass by k and way."""
    rows = [row for _, row in long_rows(after, Corpus.open(CORPUS), LENGTH, JUDGED_ROWS)]
    judged = [{"kl": 0.0, "captured": {str(k): dict.fromkeys(WAYS, 0.0) for k in TOPK}} for _ in after.layers]
    for row in rows:
        traces = [Trace(attention_mass=True) for _ in range(2)]
        for model, trace in zip((before, after), traces, strict=True):
            model.trunk(Batch.from_tokens(row[None]), trace=trace, selection="dense")
        for figures, untrained, layer in zip(judged, *(trace.layers for trace in traces), strict=True):
            figures["kl"] += indexer_loss(layer).item() / len(rows)
            for k in TOPK:
                for way, held in zip(WAYS, captured(layer, untrained, k), strict=False):  # shares of zero scores come after them
                    figures["captured"][str(k)][way] += held / len(rows)
    return judged


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """One process at a time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    IndexerStudy().main()
