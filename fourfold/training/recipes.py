"""Recipes by name: everything that decides a run, written down, overridden by name and read back."""

import dataclasses
import difflib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fourfold.config import PARTS, ModelConfig, Part
from fourfold.errors import ConfigError
from fourfold.presets import preset
from fourfold.training.media import MediaSettings
from fourfold.training.optim import OptimizerSettings
from fourfold.training.recipe import Mode, Recipe, Stage

__all__ = ["RECIPES", "Recipe", "Stage", "from_dict", "override", "recipe", "to_dict"]

# fields that a recipe.json written before them has not: left out unless set
LATER: dict[str, Any] = {"media": MediaSettings(), "blend": {}}
TEXT_SHARES = {"tiny-text": 0.7, "tiny-chat": 0.22, "needles": 0.08}
MEDIA_SHARES = {
    "tiny-omni:fashion:read": 0.12,
    "tiny-omni:fashion:draw": 0.08,
    "tiny-omni:fluent+noto": 0.28,
    "tiny-omni:animated": 0.08,
    "tiny-omni:sprites": 0.2,
    "tiny-omni:speech": 0.18,
    "tiny-omni:sounds": 0.06,
}
# one part text to three of media, most of it what takes most to learn
JOINED = {
    "tiny-text": 0.15,
    "tiny-chat": 0.07,
    "needles": 0.03,
    "tiny-omni:fashion:read": 0.15,
    "tiny-omni:fashion:draw": 0.09,
    "tiny-omni:fluent+noto": 0.13,
    "tiny-omni:animated": 0.03,
    "tiny-omni:sprites": 0.19,
    "tiny-omni:speech": 0.13,
    "tiny-omni:sounds": 0.03,
}
MICRO_ROWS: dict[str, dict[str, int]] = {  # of every step of `micro-omni`, by modality and source
    "text": {"tiny-text": 2},
    "images": {"tiny-omni:fashion": 1, "tiny-omni:fluent+noto": 1},
    "clips": {"tiny-omni:sprites": 2},
    "sound": {"tiny-omni:speech:read": 1, "tiny-omni:speech+sounds:read": 1},
}
MICRO_STEPS, MICRO_LENGTH = 300, 400  # rows in which two clips fit
ANNEALED = {
    "tiny-text": 0.26,
    "tiny-chat": 0.08,
    "needles": 0.02,
    "tiny-omni:fashion:read": 0.13,
    "tiny-omni:fashion:draw": 0.12,
    "tiny-omni:fluent+noto": 0.06,
    "tiny-omni:animated": 0.01,
    "tiny-omni:sprites": 0.16,
    "tiny-omni:speech": 0.14,
    "tiny-omni:sounds": 0.02,
}
PLACED = {
    "tiny-text": 0.36,
    "tiny-chat": 0.07,
    "needles": 0.02,
    "tiny-omni:fashion:read": 0.13,
    "tiny-omni:fashion:draw": 0.11,
    "tiny-omni:fluent+noto": 0.07,
    "tiny-omni:sprites": 0.02,
    "tiny-omni:speech:read": 0.16,
    "tiny-omni:speech": 0.04,
    "tiny-omni:sounds": 0.02,
}
# clips above all, then which way they move, with a little of all else; then everything, two fifths of it text
MOVING = {
    "tiny-text": 0.08,
    "tiny-omni:sprites:draw": 0.48,
    "tiny-omni:sprites:talk": 0.26,
    "tiny-omni:fashion:read": 0.04,
    "tiny-omni:fashion:draw": 0.04,
    "tiny-omni:fluent+noto": 0.02,
    "tiny-omni:speech:read": 0.07,
    "tiny-omni:sounds": 0.01,
}
WAYS = {
    "tiny-text": 0.06,
    "tiny-omni:sprites:draw": 0.2,
    "tiny-omni:sprites:way": 0.62,
    "tiny-omni:fashion:read": 0.04,
    "tiny-omni:fashion:draw": 0.03,
    "tiny-omni:speech:read": 0.05,
}
BLENDED = {
    "tiny-text": 0.34,
    "tiny-chat": 0.06,
    "needles": 0.02,
    "tiny-omni:sprites:draw": 0.18,
    "tiny-omni:sprites:way": 0.07,
    "tiny-omni:sprites:talk": 0.03,
    "tiny-omni:fashion:read": 0.08,
    "tiny-omni:fashion:draw": 0.09,
    "tiny-omni:fluent+noto": 0.02,
    "tiny-omni:speech:read": 0.09,
    "tiny-omni:speech": 0.01,
    "tiny-omni:sounds": 0.01,
}


def debug() -> Recipe:
    """Every mechanism and all three stages, within a minute on two cores."""
    stages = (
        Stage("dense", "dense", tokens=40_960),
        Stage("indexer", "indexer", tokens=6_144, lr=3e-3),
        Stage("sparse", "sparse", tokens=12_288, lr=1e-3),
    )
    small: dict[str, Any] = dict(document_stride=20, sequence_length=128, batch_size=4, eval_rows=8, checkpoint_every=20, threads=1)
    return Recipe("debug", "debug", stages, optimizer=OptimizerSettings(lr=4e-3), **small)


def micro() -> Recipe:
    """About 1M active parameters: one arm of an ablation."""
    stages = (
        Stage("dense", "dense", tokens=2_000_000),
        Stage("indexer", "indexer", tokens=200_000, lr=2e-3),
        Stage("sparse", "sparse", tokens=500_000, lr=5e-4),
    )
    return Recipe("micro", "micro", stages, eval_every=200, checkpoint_every=200, optimizer=OptimizerSettings(lr=3e-3))


def nano() -> Recipe:
    """The small checkpoint that ships with the project: text, then chats, then rows of 4,096 tokens, dense and then sparse."""
    indexer = _long("indexer", "indexer", tokens=150_000, lr=2e-3, decay=0.2, final=0.05)
    stages = (*_dense_stages(), indexer, _long("sparse", "sparse", tokens=400_000, lr=8e-4, decay=0.5, final=0.05))
    settings = OptimizerSettings(lr=4e-3)
    return Recipe("nano", "nano", stages, dtype="bfloat16", eval_every=200, checkpoint_every=200, optimizer=settings)


def nano_long() -> Recipe:
    """Goes on from the weights of `nano`: many questions about what a text says, then rows of 8,192 tokens, then sparse attention.

    A sparse step on 8,192 tokens takes 23 GB, for its KL and gradients go over whole rows; on 4,096 tokens it takes 6.
    """
    ask = {"needles": 0.45, "tiny-chat": 0.3, "tiny-text": 0.25}
    stages = (
        Stage("ask", "dense", tokens=1_300_000, lr=2e-3, warmup=0.05, final=0.5, mix=ask),
        _long("long", "dense", tokens=500_000, lr=1.2e-3, decay=0.3, final=0.5, length=8192),
        _long("indexer", "indexer", tokens=80_000, lr=2e-3, decay=0.2, final=0.05, length=8192),
        _long("sparse", "sparse", tokens=400_000, lr=8e-4, decay=0.5, final=0.05),
    )
    return dataclasses.replace(nano(), name="nano-long", init="nano", seed=1, stages=stages)


def nano_anneal() -> Recipe:
    """The last stretch of the model that ships: from the weights of `nano-long`, half plain text, at rates that fall to nothing.

    In the end the routers' biases alone move: long rows of one document each have set them askew for mixed text.
    """
    ask = {"tiny-text": 0.47, "needles": 0.3, "tiny-chat": 0.23}
    stages = (
        Stage("ask", "dense", tokens=2_000_000, lr=2e-3, warmup=0.05, decay=0.7, final=0.2, mix=ask),
        _long("long", "dense", tokens=300_000, lr=6e-4, decay=0.5, final=0.5, length=8192),
        _long("indexer", "indexer", tokens=80_000, lr=2e-3, decay=0.2, final=0.05, length=8192),
        _long("sparse", "sparse", tokens=500_000, lr=4e-4, decay=0.7, final=0.02),
        Stage("balance", "dense", tokens=250_000, lr=0.0, mix={"tiny-text": 0.85, "tiny-chat": 0.15}),
    )
    return dataclasses.replace(nano(), name="nano-anneal", init="nano-long", seed=2, stages=stages)


def nano_dense() -> Recipe:
    """What nano is measured against: a plain transformer of the same active parameters, on the same tokens."""
    stages = (*_dense_stages(), _long("last", "dense", tokens=400_000, lr=8e-4, decay=0.5, final=0.05))
    return dataclasses.replace(nano(), name="nano-dense", preset="nano-dense", stages=stages, model={})


def debug_omni() -> Recipe:
    """Text, pictures, clips and sound through all three stages, in a minute once the codec has seen the pictures."""
    mix = _mix(text=0.4)
    stages = (
        Stage("dense", "dense", tokens=40_960, mix=mix),
        Stage("indexer", "indexer", tokens=6_144, lr=3e-3, mix=mix),
        Stage("sparse", "sparse", tokens=12_288, lr=1e-3, mix=mix),
    )
    return dataclasses.replace(debug(), name="debug-omni", preset="debug-omni", stages=stages, sequence_length=512, batch_size=2)


def nano_omni() -> Recipe:
    """All modalities in one trunk from the first step on: two parts text, three parts media."""
    stages = (
        Stage("mixed", "dense", tokens=1_500_000, warmup=0.05, decay=0.3, final=0.3, mix=_mix(text=0.4)),
        *_omni_ends(),
    )
    return dataclasses.replace(nano(), name="nano-omni", preset="nano-omni", stages=stages)


def nano_omni_late() -> Recipe:
    """What nano-omni is measured against: the same tokens of every source, but text by itself first, and media added later."""
    stages = (
        Stage("text", "dense", tokens=500_000, warmup=0.15, decay=0.0, mix=_mix(text=1.0)),
        Stage("media", "dense", tokens=1_000_000, warmup=0.0, decay=0.45, final=0.3, mix=_mix(text=0.1)),
        *_omni_ends(),
    )
    return dataclasses.replace(nano_omni(), name="nano-omni-late", stages=stages)


def nano_omni_joined() -> Recipe:
    """The small omni model's beginning, from the weights of `nano`: text goes on beside media, in rows that clips fit into."""
    settings = MediaSettings(image=8.0, video=8.0, audio=6.0, ctc_weight=0.1)
    stages = (Stage("mixed", "dense", tokens=2_600_000, lr=3e-3, warmup=0.03, decay=0.0, mix=JOINED),)
    unplaced = {"image_place_waves": 0, "code_place_waves": 0}
    shape: dict[str, Any] = dict(sequence_length=1024, batch_size=4, dtype="float32", model=nano().model | unplaced)
    return dataclasses.replace(
        nano(), name="nano-omni-joined", preset="nano-omni", init="nano", seed=3, stages=stages, media=settings, **shape
    )


def micro_omni(*kinds: str) -> Recipe:
    """Some modalities (all by default), each on rows of its own, the same number of every source in every step.

    With fewer modalities a step has fewer rows: just those that the step of all modalities has of them, at the same rate. Attention
    is dense throughout and only the next token is predicted, so that all arms of a study take two cores half an hour.
    """
    mix = {source: float(rows) for kind in kinds or MICRO_ROWS for source, rows in MICRO_ROWS[kind].items()}
    size = round(sum(mix.values()))
    stage = Stage("mixed", "dense", tokens=MICRO_STEPS * MICRO_LENGTH * size, warmup=0.05, decay=0.3, mix=mix)
    base, name = micro(), "-".join(("micro-omni", *kinds))
    return dataclasses.replace(
        base, name=name, preset="micro-omni", stages=(stage,), sequence_length=MICRO_LENGTH, batch_size=size,
        model=base.model | {"selection": None, "num_nextn_predict_layers": 0}, eval_every=MICRO_STEPS // 6, eval_rows=16,
        optimizer=OptimizerSettings(lr=4e-3), checkpoint_every=60, threads=1,
    )  # fmt: skip


def micro_omni_late() -> Recipe:
    """As many rows of every source as `micro-omni` and the same rates, but two thirds of the text first and by themselves.

    The rest of the text goes with the media, a tenth of all rows there, so that it is not forgotten.
    """
    early, whole = MICRO_STEPS // 6, micro_omni()
    size, mix = whole.batch_size, dict(whole.stages[0].mix)
    text = MICRO_ROWS["text"]
    late = mix | {source: rows - size * early * rows / sum(text.values()) / MICRO_STEPS for source, rows in text.items()}
    stages = (
        Stage("text", "dense", tokens=early * MICRO_LENGTH * size, warmup=0.05 * 6, decay=0.0, mix={s: mix[s] for s in text}),
        Stage("media", "dense", (MICRO_STEPS - early) * MICRO_LENGTH * size, mix=late, warmup=0.0, decay=0.3 * 6 / 5),
    )
    return dataclasses.replace(whole, name="micro-omni-late", stages=stages)


def nano_omni_anneal() -> Recipe:
    """Goes on from `nano-omni-joined`: more text, drawings counting more, rates that fall to nothing; then the indexers."""
    settings = dataclasses.replace(nano_omni_joined().media, drawn=1.0, filmed=1.0)
    stages = (
        Stage("mixed", "dense", tokens=1_500_000, lr=3e-3, warmup=0.02, decay=0.85, final=0.02, mix=ANNEALED),
        Stage("indexer", "indexer", tokens=80_000, lr=1e-3, decay=0.3, final=0.05, mix=ANNEALED),
    )
    return dataclasses.replace(
        nano_omni_joined(), name="nano-omni-anneal", init="nano-omni-joined", seed=4, stages=stages, media=settings
    )


def nano_omni_placed() -> Recipe:
    """Goes on from `nano-omni-anneal`, whose patches and codes did not name their places: nearly half text.

    Clips are read at half their frames, and few of them: in trials of 160k to 480k tokens none of the ways to show and ask about
    them (fewer pixels, a tower, more questions) had begun to teach which way things move.
    """
    before = nano_omni_anneal()
    stages = (
        Stage("mixed", "dense", tokens=2_600_000, lr=1.5e-3, warmup=0.02, decay=0.95, final=0.02, mix=PLACED),
        Stage("indexer", "indexer", tokens=60_000, lr=1e-3, decay=0.3, final=0.05, mix=PLACED),
    )
    model = before.model | {"clip_rate": 4.0, "image_place_waves": 6, "code_place_waves": 6}
    return dataclasses.replace(
        before, name="nano-omni-placed", init="nano-omni-anneal", seed=5, stages=stages, batch_size=2, model=model
    )


def nano_omni_moving() -> Recipe:
    """Goes on from `nano-omni-placed` with clips above all, their patches made of two frames each."""
    before = nano_omni_placed()
    stage = Stage("clips", "dense", tokens=1_228_800, lr=3e-3, warmup=0.03, decay=0.0, mix=MOVING)
    model = before.model | {"clip_patch_frames": 2}
    return dataclasses.replace(
        before, name="nano-omni-moving", init="nano-omni-placed", seed=6, stages=(stage,), model=model, batch_size=4, threads=2
    )


def nano_omni_ways() -> Recipe:
    """Goes on from `nano-omni-moving`: which way things move, asked by itself."""
    stage = Stage("ways", "dense", tokens=409_600, lr=3e-3, warmup=0.07, decay=0.0, mix=WAYS)
    return dataclasses.replace(nano_omni_moving(), name="nano-omni-ways", init="nano-omni-moving", seed=9, stages=(stage,))


def nano_omni_blended() -> Recipe:
    """The small omni model that ships: all sources, from an average in which text and speech were not yet forgotten for clips.

    The trunk begins as 5 parts nano-omni-ways, 2 parts nano-omni-placed and 3 parts nano; what reads pixels as nano-omni-ways.
    """
    stages = (
        Stage("mixed", "dense", tokens=2_680_000, lr=1.5e-3, warmup=0.02, decay=0.95, final=0.02, mix=BLENDED),
        Stage("indexer", "indexer", tokens=60_000, lr=1e-3, decay=0.3, final=0.05, mix=BLENDED),
    )
    blend = {"nano-omni-placed": 2 / 7, "nano": 0.3}
    return dataclasses.replace(
        nano_omni_ways(), name="nano-omni-blended", init="nano-omni-ways", blend=blend, seed=7, stages=stages
    )


def _omni_ends() -> tuple[Stage, ...]:
    mix = _mix(text=0.4)
    return (
        Stage("indexer", "indexer", tokens=100_000, lr=2e-3, mix=mix),
        Stage("sparse", "sparse", tokens=400_000, lr=1.2e-3, warmup=0.0, decay=0.7, mix=mix),
    )


def _mix(text: float) -> dict[str, float]:
    """Shares of sources, of which `text` is text and the rest is media."""
    parts = ((TEXT_SHARES, text), (MEDIA_SHARES, 1 - text))
    return {name: round(share * part, 4) for shares, part in parts for name, share in shares.items() if part > 1e-9}


def _dense_stages() -> tuple[Stage, ...]:
    text = {"tiny-text": 0.8, "tiny-chat": 0.12, "needles": 0.08}
    chat = {"tiny-chat": 0.6, "tiny-text": 0.3, "needles": 0.1}
    return (
        Stage("text", "dense", tokens=5_000_000, warmup=0.03, decay=0.1, final=0.5, mix=text),
        Stage("chat", "dense", tokens=1_300_000, lr=2e-3, warmup=0.0, decay=0.3, final=0.5, mix=chat),
        _long("long", "dense", tokens=900_000, lr=1.5e-3, decay=0.3, final=0.5),
    )


def _long(name: str, mode: Mode, tokens: int, lr: float, decay: float, final: float, length: int = 4096) -> Stage:
    """A stage on single long rows, half of them made for it."""
    mix = {"needles": 0.5, "tiny-text": 0.4, "tiny-chat": 0.1}
    return Stage(name, mode, tokens, lr, mix, sequence_length=length, batch_size=1, decay=decay, final=final)


RECIPES: dict[str, Callable[[], Recipe]] = {
    "debug": debug,
    "micro": micro,
    "nano": nano,
    "nano-long": nano_long,
    "nano-anneal": nano_anneal,
    "nano-dense": nano_dense,
    "debug-omni": debug_omni,
    "nano-omni": nano_omni,
    "nano-omni-late": nano_omni_late,
    "micro-omni": micro_omni,
    "micro-omni-late": micro_omni_late,
    **{f"micro-omni-{kind}": partial(micro_omni, kind) for kind in MICRO_ROWS},
    "nano-omni-joined": nano_omni_joined,
    "nano-omni-anneal": nano_omni_anneal,
    "nano-omni-placed": nano_omni_placed,
    "nano-omni-moving": nano_omni_moving,
    "nano-omni-ways": nano_omni_ways,
    "nano-omni-blended": nano_omni_blended,
}


def recipe(name: str) -> Recipe:
    """A recipe by name. Raises ConfigError naming those that exist."""
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is not known; choose one of {', '.join((*RECIPES, 'codec'))}")
    return RECIPES[name]()


def to_dict(recipe: Recipe) -> dict[str, Any]:
    """What recipe.json says; fields that came later are left out unless they are set, so that older runs read alike."""
    values = dataclasses.asdict(recipe)
    return {name: value for name, value in values.items() if name not in LATER or getattr(recipe, name) != LATER[name]}


def from_dict(values: dict[str, Any]) -> Recipe:
    """The inverse of `to_dict`. Raises ConfigError naming the field that does not fit."""
    try:
        recipe = TypeAdapter(Recipe).validate_python(values)
    except ValidationError as error:
        first = error.errors()[0]
        given = "" if first["type"] == "missing" else f"{first['input']!r} "
        raise ConfigError(f"{_dotted(values, first['loc'])}: {given}does not fit ({first['msg']})") from None
    if twice := [name for name, count in Counter(stage.name for stage in recipe.stages).items() if count > 1]:
        raise ConfigError(f"stages: two are called {twice[0]}; rename one")
    if empty := [stage.name for stage in recipe.stages if stage.mix and not any(stage.mix.values())]:
        raise ConfigError(f"stages.{empty[0]}.mix: every share is 0; give one source a share above 0, or leave the mix empty")
    if recipe.blend and not recipe.init:
        raise ConfigError("blend: needs weights to average into; set init too")
    if not recipe.steps:
        raise ConfigError("stages: all have 0 tokens, so nothing would be trained; set stages.NAME.tokens of one")
    return recipe


def override(recipe: Recipe, settings: list[str]) -> Recipe:
    """Apply `key=value` settings: a recipe's field (`optimizer.lr=1e-3`), a stage's by name (`stages.dense.tokens=200000`), a share
    of its mix by source (`stages.dense.mix.tiny-chat=0.3`) or a model's by its published name (`model.hidden_size=128`). With
    another `corpus`, a mix's share of the old one goes to it. Raises ConfigError for an unknown key or a value that does not fit.
    """
    values = dataclasses.asdict(recipe)
    flat = _model_fields() | preset(recipe.preset).to_flat()
    known = {key: place for key, *place in _leaves(values)}
    for setting in settings:
        key, equals, text = setting.partition("=")
        field_name = key.rpartition(".")[2]
        if not equals:
            raise ConfigError(f"--set {setting}: has no value; write key=value")
        if key.startswith("model.") and field_name in flat:
            values["model"][field_name] = _parse(text, flat[field_name])
        elif stage := next((stage for stage in values["stages"] if key.startswith(f"stages.{stage['name']}.mix.")), None):
            stage["mix"][key.removeprefix(f"stages.{stage['name']}.mix.")] = _parse(text, None)
        elif key in known:
            holder, name = known[key]
            before, holder[name] = holder[name], _parse(text, holder[name])
            if key == "corpus":
                _move_shares(values["stages"], before, holder[name])
        else:
            every = [*known, *(f"model.{name}" for name in flat)]
            near = difflib.get_close_matches(key, every, n=3, cutoff=0.5)
            raise ConfigError(
                f"--set {key}: no such field; " + (f"near: {', '.join(near)}" if near else "see recipe.json of a run")
            )
    changed = from_dict(values)
    changed.model_config()
    return changed


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, dict, str]]:
    """Every settable field: its dotted key, the dict that holds it, its name there."""
    for name, value in values.items():
        if name == "stages":
            for stage in value:
                yield from _leaves(stage, f"stages.{stage['name']}.")
        elif isinstance(value, dict) and name not in ("model", "mix", "blend"):
            yield from _leaves(value, f"{prefix}{name}.")
        elif name != "model":
            yield prefix + name, values, name


def _move_shares(stages: list[dict], old: str, new: str) -> None:
    """Give a source's share of every mix to another."""
    for mix in [stage["mix"] for stage in stages if old in stage["mix"]]:
        mix[new] = mix.pop(old) + mix.get(new, 0)


def _model_fields() -> dict[str, None]:
    """Every published name a model's config may hold, and the parts that may be taken out."""
    models: list[type[Part]] = [ModelConfig, *PARTS.values()]
    return {name: None for model in models for name in model.model_fields}


def _parse(text: str, old: Any) -> Any:
    """The value meant by `text`: as it stands where a string was, else read as JSON (underscores in numbers allowed)."""
    if isinstance(old, str):
        return text
    for attempt in (text, text.lower().replace("none", "null"), text.replace("_", ""), f"[{text}]"):
        try:
            return json.loads(attempt)
        except ValueError:
            continue
    return text


def _dotted(values: dict[str, Any], path: tuple) -> str:
    stage = values["stages"][path[1]] if path[0] == "stages" and len(path) > 1 else None
    named = (stage["name"] if i == 1 and isinstance(stage, dict) and "name" in stage else part for i, part in enumerate(path))
    return ".".join(map(str, named))
