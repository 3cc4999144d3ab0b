"""A recipe as the JSON of recipe.json, read back, and changed by `key=value`."""

import dataclasses
import difflib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fourfold.config import PARTS, ModelConfig, Part
from fourfold.errors import ConfigError
from fourfold.presets import preset
from fourfold.training.media import MediaSettings
from fourfold.training.recipe import Recipe

# fields that a recipe.json written before them has not: left out unless set
LATER: dict[str, Any] = {"media": MediaSettings(), "blend": {}}


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
