"""Modalities learnt together, one after the other, or each by a model of its own, on preset `micro-omni` at equal tokens.

python experiments/native/run.py [--seeds 0 1] [--tokens N] [--only ARM ...]

`native` reads text, pictures, clips and sound in every step. `late` reads as many rows of every source, two thirds of the text
before anything else. `text`, `images`, `clips` and `sound` read one modality: in every step just those rows that the step of
`native` has of it, in the same order and at the same learning rate. So every arm has the same network and the same first weights,
takes the same number of steps at the same rates, and has seen the same rows of what it is judged by when it is done. What differs
is the other rows of a step: the joint arms are trained on four times as many tokens in all, of which a modality of its own makes a
quarter. Every score is on held-out data, the same for all arms and seeds.

`timing`: from a picture's file to the first token of an answer about it, with weights as they begin. `native` and `late` are the
same network and take the same time; a chain of two models writes a caption first, for a model of text to answer from.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

import fourfold
from experiments.lib.runs import forget, score, settings_of, trained
from experiments.lib.sizes import sizes
from experiments.lib.stats import over_seeds, paired, said
from experiments.lib.study import Found, NotReadyError, Study, Unit
from fourfold import paths
from fourfold.data import omni_wordings as words
from fourfold.data.omni import Item, OmniCorpus
from fourfold.data.shelf import checksum_of
from fourfold.engine.batches import replies
from fourfold.evals.omni import clips, fashion, sounds, speech
from fourfold.evals.omni.asking import hashed, worded
from fourfold.evals.omni.subject import ModelSubject
from fourfold.evals.statistics import share, subset
from fourfold.media.motion import WAYS
from fourfold.model.transformer import Transformer
from fourfold.training import recipes
from fourfold.training.data import TrainingData
from fourfold.training.media_data import MediaSources
from fourfold.training.metrics import media_losses
from fourfold.training.plots import KINDS, read_metrics
from fourfold.training.omni_recipes import MICRO_LENGTH, MICRO_ROWS
from fourfold.training.recipe import Recipe

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CORPUS = "tiny-omni"
ALL = tuple(MICRO_ROWS)  # the modalities
JOINT = {"native": "micro-omni", "late": "micro-omni-late"}
HELD_OUT = {  # sources that a modality is scored on
    "images": ("tiny-omni:fashion", "tiny-omni:fluent+noto"),
    "clips": ("tiny-omni:sprites",),
    "sound": ("tiny-omni:speech:read", "tiny-omni:sounds:read"),
}
ROWS, AT_ONCE = 48, 8  # held-out rows of a source, and in one forward
TEXT_ROWS = 160
PICTURES, CLIPS, SPOKEN = 1000, 240, 200  # questions that are asked
ROUNDS, CAPTION = 40, 5  # of the timing; tokens that a chain writes first
TOWER = {"tower_layers": 4, "tower_hidden_size": 80, "tower_intermediate_size": 224, "tower_heads": 4, "tower_patch_size": 8}


class Native(Study):
    name, tokens, seeds = "native", recipes.recipe("micro-omni").stages[0].tokens, (0, 1)
    arms = ("timing", *JOINT, *ALL)

    def rank(self, arm: str, seed: int) -> int:
        return 1 if arm == "timing" else 10 + seed

    def is_alone(self, arm: str) -> bool:
        return arm == "timing"

    def seeds_of(self, arm: str, seeds: Sequence[int]) -> Sequence[int]:
        return [0] if arm == "timing" else seeds

    def recipe(self, arm: str, seed: int, tokens: int) -> Recipe:
        """An arm's run; `tokens` are those of a joint arm."""
        base = recipes.recipe(JOINT.get(arm, f"micro-omni-{arm}"))
        stages = [dataclasses.replace(stage, tokens=round(stage.tokens * tokens / self.tokens)) for stage in base.stages]
        return dataclasses.replace(base, name=f"native-{arm}", seed=seed, stages=tuple(stages))

    def settings(self, arm: str, seed: int, tokens: int) -> dict:
        recipe = self.recipe("native" if arm == "timing" else arm, seed, tokens)
        if arm == "timing":
            return {"rounds": ROUNDS, "caption": CAPTION, "tower": TOWER, "model": recipe.model_config().to_flat()}
        codec = paths.find("models", recipe.media.codec)
        if codec is None:
            raise NotReadyError(f"{self.name}: there is no codec yet; train one with `fourfold train codec`")
        asked = {"rows": ROWS, "text_rows": TEXT_ROWS, "asked": [PICTURES, CLIPS, SPOKEN]}
        return settings_of(recipe) | {"codec": checksum_of(codec)} | asked

    def measure(self, unit: Unit, tokens: int) -> dict:
        if unit.arm == "timing":
            return {"first_token": first_token(self.recipe("native", 0, tokens))}
        recipe = self.recipe(unit.arm, unit.seed, tokens)
        model = fourfold.load(str(trained(recipe, unit.folder)), dtype="float32")
        kinds = ALL if unit.arm in JOINT else (unit.arm,)
        result = {
            "sizes": sizes(model.config),
            "steps": recipe.steps,
            "tokens": {kind: tokens_of(recipe, kind) for kind in kinds},
            "loss": losses(model, kinds, self.recipe("native", 0, tokens)),
            "asked": asked(model, kinds),
            "points": points(unit.folder),
        }
        forget(unit.folder)
        return result

    def merge(self, found: Found, tokens: int) -> dict:
        """Each figure by modality: mean over seeds of every arm that has it, and the joint arms against others."""
        arms = {arm: units for arm, units in found.items() if arm != "timing"}
        first = {arm: next(iter(units.values())) for arm, units in arms.items()}
        figures = {}
        for kind in ALL:
            names = dict.fromkeys(name for units in arms.values() for unit in units.values() for name in figures_of(unit, kind))
            for name in names:
                values = {arm: _values(arms[arm], kind, name) for arm in (*JOINT, kind) if arm in arms}
                figures[name] = {
                    "modality": kind,
                    "arms": {("single" if arm == kind else arm): over_seeds(by_seed) for arm, by_seed in values.items()},
                    "native_less_single": _less(values, "native", kind),
                    "late_less_single": _less(values, "late", kind),
                    "native_less_late": _less(values, "native", "late"),
                }
        counts = {name: about for unit in first.values() for name, about in unit["asked"].items()}
        return {
            "rows_of_a_step": MICRO_ROWS,
            "length": MICRO_LENGTH,
            "sizes": next(iter(first.values()))["sizes"] if first else None,
            "arms": {arm: {"steps": unit["steps"], "tokens": unit["tokens"]} for arm, unit in first.items()},
            "chance": {name: {"chance": about["chance"], "count": about["total"]} for name, about in counts.items()},
            "figures": figures,
            "first_token": found.get("timing", {}).get(0, {}).get("first_token"),
            "course": {arm: {seed: unit["points"] for seed, unit in units.items()} for arm, units in arms.items()},
        }

    def table(self, result: dict) -> str:
        lines = [
            "| figure | native | late | single | native - single | late - single | native - late |",
            "|---|---|---|---|---|---|---|",
        ]
        for name, row in result["figures"].items():
            values = [said(row["arms"].get(arm)) for arm in (*JOINT, "single")]
            values += [said(row[f"{pair}"], sign=True) for pair in ("native_less_single", "late_less_single", "native_less_late")]
            lines.append(f"| {name} | {' | '.join(values)} |")
        for name, row in (result["first_token"] or {}).items():
            lines.append(f"| first token, {name} | {row['ms']:.1f} ms | | | | | |")
        return "\n".join(lines)

    def draw(self, result: dict) -> "Figure":
        from matplotlib.figure import Figure

        figure = Figure(figsize=(13, 5), layout="constrained")
        left, middle, right = figure.subplots(1, 3, width_ratios=(2, 2, 1))
        losses_of = {name: row for name, row in result["figures"].items() if name not in result["chance"]}
        _bars(left, losses_of, lambda row, arm: _relative(row, arm))
        left.set_title("held-out loss against the single model (%)\nbelow 0: better together")
        left.axvline(0, color="black", linewidth=0.8)
        answers = {name: row for name, row in result["figures"].items() if name in result["chance"]}
        _bars(middle, answers, lambda row, arm: _mean(row["arms"].get(arm)), (*JOINT, "single"))
        for place, name in enumerate(answers):
            chance = result["chance"][name]["chance"]
            middle.plot([chance, chance], [place - 0.4, place + 0.4], color="black", linestyle=":")
        middle.set_title("share of questions right\n(dotted: chance)")
        times = result["first_token"] or {}
        right.barh(list(times), [row["ms"] for row in times.values()], color="tab:grey")
        right.set_title("first token (ms)")
        for axes in (left, middle, right):
            axes.grid(axis="x", alpha=0.3)
            axes.tick_params(labelsize=8)
        return figure


def tokens_of(recipe: Recipe, kind: str) -> int:
    """Places of the rows that a run reads of a modality, padding among them."""
    total = 0.0
    for stage in recipe.stages:
        mix = recipe.sources(stage)
        total += stage.tokens * sum(mix.get(source, 0.0) for source in MICRO_ROWS[kind]) / sum(mix.values())
    return round(total)


@torch.inference_mode()
def losses(model: Transformer, kinds: Sequence[str], recipe: Recipe) -> dict[str, dict[str, float]]:
    """modality -> figure -> value: bits per byte of text, nats per place of what rows with media teach, by source and kind."""
    found: dict[str, dict[str, float]] = {}
    sources = MediaSources(recipe, model.tokenizer)
    for kind in kinds:
        if kind == "text":
            found[kind] = {"text, bits per byte": score(model, MICRO_LENGTH, TEXT_ROWS, "dense")}
            continue
        found[kind] = {}
        for source in HELD_OUT[kind]:
            rows = sources.rows(source, MICRO_LENGTH, "held_out")
            batches = (rows.take(list(range(at, at + AT_ONCE))) for at in range(0, ROWS, AT_ONCE))
            name = source.split(":")[1]
            found[kind] |= {f"{name}, {TAUGHT[k]}": loss for k, loss in media_losses(model, batches, "dense").items()}
    return found


TAUGHT = dict.fromkeys(KINDS, "words") | {"drawn": "codes", "filmed": "codes"}


def asked(model: Transformer, kinds: Sequence[str]) -> dict[str, dict]:
    """Questions with a few possible answers, of which the likeliest counts: how many are right, by what they are about."""
    corpus = OmniCorpus.open(CORPUS)
    subject, found = ModelSubject(model, corpus), {}
    for kind, name, items, wordings, truth, options in questions(corpus):
        if kind in kinds:
            prompts = [(item, worded(wordings, item.id)) for item in items]
            nats = subject.surprise(prompts, [options] * len(items), name)
            chosen = [options[min(range(len(options)), key=own.__getitem__)] for own in nats]
            right = sum(answer == truth(item) for answer, item in zip(chosen, items, strict=True))
            found[name] = {"modality": kind, "chance": 1 / len(options)} | share(right, len(items))
    return found


Questions = tuple[str, str, list[Item], Sequence[str], Callable[[Item], str], list[str]]


def questions(corpus: OmniCorpus) -> list[Questions]:
    """Modality, name, what is asked about, wordings, the right answer to each, and all answers."""
    shown = {name: corpus.items("held_out", {name}) for name in (fashion.SOURCE, "sprites", "speech", "sounds")}
    clothes = subset(shown[fashion.SOURCE], PICTURES, lambda item: item.id)
    moving, spoken = clips.moving(shown["sprites"])[:CLIPS], hashed(speech.parted(shown["speech"])[0], "word")
    vocabulary, families = sorted({item.text for item in spoken}), sorted(set(map(sounds.family, shown["sounds"])))
    return [
        ("images", "Fashion-MNIST, class", clothes, words.READ["image"], _text, sorted(set(map(_text, clothes)))),
        ("clips", "sprites, direction", moving, words.MOTION, lambda item: item.details["motion"], list(WAYS)),
        ("sound", "speech, word", spoken[:SPOKEN], words.READ["speech"], _text, vocabulary),
        ("sound", "sounds, family", shown["sounds"], words.READ["sound"], sounds.family, families),
    ]


def _text(item: Item) -> str:
    return item.text


def points(folder: Any) -> list[dict]:
    """The held-out figures on the way, as the run wrote them down."""
    rows = read_metrics(folder / "metrics.jsonl")
    return [
        {"tokens": row["tokens"]} | {name: value for name, value in row.items() if name.startswith("held_out_")}
        for row in rows
        if "held_out_loss" in row
    ]


@torch.inference_mode()
def first_token(recipe: Recipe) -> dict[str, dict]:
    """name -> `ms` from a picture's file (64 x 64 pixels) to the first token of an answer, median over rounds in turn, and range.

    Beside it: a question of as many tokens without a picture; with a tower of four layers before the trunk; and a chain of two
    models, one of which writes `CAPTION` tokens about the picture, from which the other answers.
    """
    corpus = OmniCorpus.open(CORPUS)
    item, asked_ = corpus.items("held_out", {"fluent"})[0], words.READ["image"][0]
    data = TrainingData.open(recipe)
    plain, towered = (_untrained(recipe, data, changes) for changes in ({}, TOWER))
    subjects = {name: ModelSubject(model, corpus) for name, model in (("plain", plain), ("tower", towered))}
    length = len(subjects["plain"].span((item, asked_)))
    question = "what is this and what do you see here " * length
    ids = data.tokenizer.encode(question)[:length]
    ways: dict[str, Callable[[], object]] = {
        "picture question": lambda: _first(plain, subjects["plain"].span((item, asked_))),
        "words, as many tokens": lambda: _first(plain, ids),
        "picture, with a tower": lambda: _first(towered, subjects["tower"].span((item, asked_))),
        "chain of two models": lambda: _chain(plain, subjects["plain"], item, asked_),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS + 3):  # the first three warm up
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            taken[name].append(1000 * (time.perf_counter() - began))
    kept = {name: values[3:] for name, values in taken.items()}
    return {name: {"ms": statistics.median(v), "range": [min(v), max(v)], "tokens": length} for name, v in kept.items()}


def _untrained(recipe: Recipe, data: TrainingData, changes: dict[str, Any]) -> Transformer:
    config = data.fit(dataclasses.replace(recipe, model=recipe.model | changes).model_config())
    model = Transformer(config, data.token_classes).init_weights(0).eval()
    model.tokenizer = data.tokenizer
    return model


def _first(model: Transformer, prompt: Any) -> list[int]:
    return replies(model, [prompt], (), 1, "dense")[0]


def _chain(model: Transformer, subject: ModelSubject, item: Item, question: str) -> list[int]:
    caption = replies(model, [subject.span((item, question))], (), CAPTION, "dense")[0]
    return _first(model, subject.span((f"{model.tokenizer.decode(caption)}. {question}",)))


def figures_of(unit: dict, kind: str) -> dict[str, float]:
    """All figures of a modality in a unit's result."""
    own = {name: about["share"] for name, about in unit["asked"].items() if about["modality"] == kind}
    return unit["loss"].get(kind, {}) | own


def _values(units: dict[int, dict], kind: str, name: str) -> dict[int, float]:
    return {seed: figures[name] for seed, unit in units.items() if name in (figures := figures_of(unit, kind))}


def _less(values: dict[str, dict[int, float]], one: str, other: str) -> dict | None:
    return paired(values[one], values[other]) if one in values and other in values else None


def _mean(figure: dict | None) -> float | None:
    return None if figure is None else figure["mean"]


def _relative(row: dict, arm: str) -> float | None:
    """Per cent of the single model's."""
    ours, theirs = _mean(row["arms"].get(arm)), _mean(row["arms"].get("single"))
    return None if ours is None or theirs is None else 100 * (ours / theirs - 1)


def _bars(axes: Any, rows: dict[str, dict], value: Callable[[dict, str], float | None], arms: Sequence[str] = tuple(JOINT)) -> None:
    """A group of bars for each row, one for each arm."""
    wide = 0.8 / len(arms)
    for number, arm in enumerate(arms):
        places = [(place, found) for place, row in enumerate(rows.values()) if (found := value(row, arm)) is not None]
        axes.barh([p + (number + 0.5) * wide - 0.4 for p, _ in places], [v for _, v in places], wide, label=arm)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.invert_yaxis()
    if rows:
        axes.legend(fontsize=8)


if __name__ == "__main__":
    Native().main()
