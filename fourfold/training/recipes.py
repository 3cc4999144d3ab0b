"""Recipes: everything that decides a run, as one frozen value that is written down, overridden by name and read back."""

import dataclasses
import difflib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from fourfold.config import PARTS, ModelConfig, Part
from fourfold.errors import ConfigError
from fourfold.presets import preset
from fourfold.training.optim import Amount, OptimizerSettings
from fourfold.training.schedule import SCHEDULES

Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(gt=0, lt=2**63)]
Mode = Literal["dense", "indexer", "sparse"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
FROM_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "engram_compressed_vocab_size", "engram_pad_id")


@dataclass(frozen=True)
class Stage:
    """One stretch of a run. `dense`: all but the indexers train and every query reads all it sees; `indexer`: the indexers
    alone learn what that attention reads; `sparse`: all train, and a query reads what its indexer chose (V3.2, section 2).

    warmup and decay are shares of the stage's steps; lr None takes the optimiser's. `mix` maps a source (a corpus, or `needles`) to
    its part of the rows, in proportion; empty means the recipe's corpus alone. A length or batch size of 0 means the recipe's.
    """

    name: str
    mode: Mode
    tokens: Count
    lr: Amount | None = None
    mix: dict[str, Amount] = field(default_factory=dict)
    sequence_length: Count = 0
    batch_size: Count = 0
    schedule: Literal["wsd", "cosine"] = "wsd"
    warmup: Share = 0.1
    decay: Share = 0.2
    final: Share = 0.05


@dataclass(frozen=True)
class Recipe:
    """A run; lengths and sizes in tokens and rows, `eval_every` and `checkpoint_every` in steps (0: at the end only).

    `init` starts from the weights of a checkpoint (name or folder) instead of new ones. `document_stride` n trains on each n-th
    document only (a quick start: less to tokenise). `threads` 0 means as many as torch would use; an empty `tokenizer` means the
    corpus's own; `model` holds fields of the preset to change, by their published names.
    """

    name: str
    preset: str
    stages: tuple[Stage, ...]
    corpus: str = "tiny-text"
    tokenizer: str = ""
    init: str = ""
    document_stride: Size = 1
    sequence_length: Size = 512
    batch_size: Size = 8
    micro_batch_size: Count = 0
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    mtp_weight: Amount = 0.3
    seed: Count = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False
    threads: Count = 0
    eval_every: Count = 0
    eval_rows: Size = 32
    checkpoint_every: Count = 100
    model: dict[str, Any] = field(default_factory=lambda: {"bias_update_speed": 0.01})  # V3's 0.001 is for long runs

    def shape(self, stage: Stage) -> tuple[int, int]:
        """Rows of a step of the stage, and tokens of a row."""
        return stage.batch_size or self.batch_size, stage.sequence_length or self.sequence_length

    def sources(self, stage: Stage) -> dict[str, float]:
        """What the stage reads, and each one's part of its rows."""
        return {name: share for name, share in stage.mix.items() if share} or {self.corpus: 1.0}

    def stage_steps(self, stage: Stage) -> int:
        return max(round(stage.tokens / math.prod(self.shape(stage))), 1) if stage.tokens else 0

    @property
    def steps(self) -> int:
        return sum(self.stage_steps(stage) for stage in self.stages)

    def tokens_by(self, step: int) -> int:
        """Tokens that the first `step` steps of the run read."""
        total = 0
        for stage in self.stages:
            steps = min(step, self.stage_steps(stage))
            total += steps * math.prod(self.shape(stage))
            step -= steps
        return total

    def place(self, step: int) -> tuple[int, int]:
        """The index of the stage that holds a 0-based step of the run, and the step's number within it."""
        for index, stage in enumerate(self.stages):
            if step < (steps := self.stage_steps(stage)):
                return index, step
            step -= steps
        raise IndexError("the run has fewer steps")

    def at(self, step: int) -> tuple[Stage, float]:
        """The stage that holds a 0-based step of the run, and the learning rate of that step."""
        index, within = self.place(step)
        stage = self.stages[index]
        steps = self.stage_steps(stage)
        edges = round(stage.warmup * steps), round(stage.decay * steps)
        scale = SCHEDULES[stage.schedule](within, steps, *edges, stage.final)
        return stage, scale * (self.optimizer.lr if stage.lr is None else stage.lr)

    def model_config(self) -> ModelConfig:
        """The preset with the recipe's own values for its fields. Raises ConfigError for an impossible mix."""
        if given := [name for name in FROM_TOKENIZER if name in self.model]:
            raise ConfigError(f"model.{given[0]}: follows from the tokenizer; choose one with --set tokenizer=FOLDER instead")
        flat = preset(self.preset).to_flat() | self.model
        for part in [name for name in PARTS if name in flat]:  # `model.streams=none` takes a mechanism out
            flat = {key: value for key, value in flat.items() if key != part and key not in PARTS[part].model_fields}
        config = ModelConfig.from_flat(flat)
        sparse = [stage.name for stage in self.stages if stage.mode != "dense" and stage.tokens]
        if sparse and not any(config.has_indexer(i) for i in range(config.num_hidden_layers)):
            raise ConfigError(f"stages.{sparse[0]}.mode: preset {self.preset} has no indexer; choose dense")
        most = config.max_position_embeddings
        for place, length in (("", self.sequence_length), *((f"stages.{s.name}.", s.sequence_length) for s in self.stages)):
            if length > most:
                raise ConfigError(f"{place}sequence_length: {length} exceeds max_position_embeddings ({most}); lower it")
        return config


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
    """The last stretch of the model that ships: from the weights of `nano-long`, half plain text, at rates that fall to nothing."""
    ask = {"tiny-text": 0.47, "needles": 0.3, "tiny-chat": 0.23}
    stages = (
        Stage("ask", "dense", tokens=2_000_000, lr=2e-3, warmup=0.05, decay=0.7, final=0.2, mix=ask),
        _long("long", "dense", tokens=300_000, lr=6e-4, decay=0.5, final=0.5, length=8192),
        _long("indexer", "indexer", tokens=80_000, lr=2e-3, decay=0.2, final=0.05, length=8192),
        _long("sparse", "sparse", tokens=500_000, lr=4e-4, decay=0.7, final=0.02),
    )
    return dataclasses.replace(nano(), name="nano-anneal", init="nano-long", seed=2, stages=stages)


def nano_dense() -> Recipe:
    """What nano is measured against: a plain transformer of the same active parameters, on the same tokens."""
    stages = (*_dense_stages(), _long("last", "dense", tokens=400_000, lr=8e-4, decay=0.5, final=0.05))
    return dataclasses.replace(nano(), name="nano-dense", preset="nano-dense", stages=stages, model={})


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
}


def recipe(name: str) -> Recipe:
    """A recipe by name. Raises ConfigError naming those that exist."""
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is not known; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()


def to_dict(recipe: Recipe) -> dict[str, Any]:
    return dataclasses.asdict(recipe)


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
    if not recipe.steps:
        raise ConfigError("stages: all have 0 tokens, so nothing would be trained; set stages.NAME.tokens of one")
    return recipe


def override(recipe: Recipe, settings: list[str]) -> Recipe:
    """Apply `key=value` settings: a recipe's field (`optimizer.lr=1e-3`), a stage's by name (`stages.dense.tokens=200000`), a share
    of its mix by source (`stages.dense.mix.tiny-chat=0.3`) or a model's by its published name (`model.hidden_size=128`). With
    another `corpus`, a mix's share of the old one goes to it. Raises ConfigError for an unknown key or a value that does not fit.
    """
    values = to_dict(recipe)
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
        elif isinstance(value, dict) and name not in ("model", "mix"):
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
