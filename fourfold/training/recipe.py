"""A run as one frozen value: the preset it trains, its stages, what each reads, and all settings."""

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from fourfold.config import PARTS, ModelConfig
from fourfold.errors import ConfigError
from fourfold.presets import preset
from fourfold.training.media import MediaSettings
from fourfold.training.optim import Amount, OptimizerSettings
from fourfold.training.schedule import SCHEDULES

Count = Annotated[int, Field(ge=0, lt=2**63)]
Size = Annotated[int, Field(gt=0, lt=2**63)]
Mode = Literal["dense", "indexer", "sparse"]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
FROM_TOKENIZER = ("vocab_size", "pad_token_id", "bos_token_id", "eos_token_id", "engram_compressed_vocab_size", "engram_pad_id")
FROM_CODEC = ("image_token_size", "code_downsample")


@dataclass(frozen=True)
class Stage:
    """One stretch of a run. `dense`: all but the indexers train and every query reads all it sees; `indexer`: the indexers
    alone learn what that attention reads; `sparse`: all train, and a query reads what its indexer chose (V3.2, section 2).

    warmup and decay are shares of the stage's steps; lr None takes the optimiser's. `mix` maps a source (a corpus, or `needles`) to
    its part of the rows, in proportion; empty means the recipe's corpus alone. Media are named as training/media_data.py says. A
    length or batch size of 0 means the recipe's.
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

    `init` starts from the weights of a checkpoint (name or folder) instead of new ones, and `blend` averages others into these,
    each with its share (see `start_from`). `document_stride` n trains on each n-th document only (a quick start: less to tokenise).
    `threads` 0 means as many as torch would use; an empty `tokenizer` means the corpus's own; `model` holds fields of the preset to
    change, by their published names; `media` matters where a mix has any.
    """

    name: str
    preset: str
    stages: tuple[Stage, ...]
    corpus: str = "tiny-text"
    tokenizer: str = ""
    init: str = ""
    blend: dict[str, Share] = field(default_factory=dict)
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
    media: MediaSettings = field(default_factory=MediaSettings)

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
        if given := [name for name in FROM_CODEC if name in self.model]:
            raise ConfigError(f"model.{given[0]}: follows from the codec; choose one with --set media.codec=FOLDER instead")
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
