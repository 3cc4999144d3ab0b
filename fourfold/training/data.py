"""What a run reads: rows of its sources to train on, others held out, and what tokenizer and codec ask of the model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.data.corpus import Corpus
from fourfold.data.mixing import MixedRows, Rows
from fourfold.data.needles import NeedleRows
from fourfold.data.packing import PackedTokens
from fourfold.data.rows import RowBatch
from fourfold.errors import DataError
from fourfold.text.tokenizer import Tokenizer
from fourfold.training.media_data import MediaSources, is_media
from fourfold.training.recipes import Recipe

NEEDLES = "needles"  # the source that is made, not read: see data/needles.py


@dataclass(frozen=True)
class TrainingData:
    """Rows of each stage's length. `checksums` identify corpora, tokenizer and codec; a resumed run must find them unchanged."""

    recipe: Recipe
    tokenizer: Tokenizer
    stages: tuple[MixedRows, ...]
    held_out: PackedTokens | None  # a corpus may have none
    checksums: dict[str, str]
    media: MediaSources

    @classmethod
    def open(cls, recipe: Recipe) -> "TrainingData":
        """The recipe's corpus and those that its stages name, under the corpus's own tokenizer unless the recipe names another.

        Raises DataError.
        """
        corpus = Corpus.open(recipe.corpus)
        folder = Path(recipe.tokenizer) if recipe.tokenizer else corpus.tokenizer_folder
        if folder is None:
            raise DataError(f"{corpus.folder}: has no tokenizer of its own; name one with --set tokenizer=FOLDER")
        tokenizer = Tokenizer.load(folder)
        sources = {name for stage in recipe.stages if stage.tokens for name in recipe.sources(stage)}
        named = {name for name in sources if not is_media(name)} - {NEEDLES}
        corpora = {name: Corpus.open(name) for name in sorted(named | {recipe.corpus})}
        media = MediaSources(recipe, tokenizer)
        stages = _stages(recipe, corpora, tokenizer, media)
        held_out = None
        if "held_out" in corpus.splits:
            held_out = PackedTokens(corpus, tokenizer, recipe.sequence_length, "held_out")  # in one order, so that runs compare
        checksums = {f"{name}/{file}": found for name, c in corpora.items() for file, found in c.checksums.items()}
        checksums |= {"tokenizer": tokenizer.checksum} | media.checksums
        return cls(recipe, tokenizer, stages, held_out, checksums, media)

    @cached_property
    def held_out_media(self) -> MixedRows | None:
        """Held-out rows of every source with media, as many of each; None for a run without any."""
        return self.media.held_out(self.recipe.sequence_length)

    def batch(self, step: int) -> RowBatch:
        """What a step of the run trains on, as its stage shapes it."""
        index, within = self.recipe.place(step)
        return self.stages[index].batch(within, self.recipe.shape(self.recipe.stages[index])[0])

    def fit(self, config: ModelConfig) -> ModelConfig:
        """The config with the sizes that follow from tokenizer (vocabulary, control tokens, Engram's token classes) and codec."""
        specials = {f"{name}_token_id": self.tokenizer.special(name) for name in ("pad", "bos", "eos")}
        changes = {"vocab_size": self.tokenizer.vocab_size, **specials}
        if config.memory is not None:
            classes = self.token_classes
            pad, count = int(classes[specials["pad_token_id"]]), int(classes.max()) + 1
            changes["memory"] = config.memory.but(engram_compressed_vocab_size=count, engram_pad_id=pad)
        return self.media.fit(config.but(**changes))

    @cached_property
    def token_classes(self) -> Tensor:
        """[vocab] int64: Engram's compression of the vocabulary."""
        return self.tokenizer.compression()[0]

    @cached_property
    def token_bytes(self) -> Tensor:
        """[vocab] int64: UTF-8 bytes that each token stands for, none for control tokens."""
        return torch.tensor([len(self.tokenizer.bytes_of(i)) for i in range(self.tokenizer.vocab_size)])


def _stages(recipe: Recipe, corpora: dict[str, Corpus], tokenizer: Tokenizer, media: MediaSources) -> tuple[MixedRows, ...]:
    """The rows of each stage; a source goes on where the stages before it, of the same length, have left off."""
    opened: dict[tuple[str, int], Rows] = {}
    begun: dict[tuple[str, int], int] = {}
    stages = []
    for stage in recipe.stages:
        size, length = recipe.shape(stage)
        shares = recipe.sources(stage) if stage.tokens else {}
        for key in [(name, length) for name in shares if (name, length) not in opened]:
            opened[key] = media.rows(*key) if is_media(key[0]) else _open(*key, recipe, corpora, tokenizer)
        first = {name: begun.get((name, length), 0) for name in shares}
        mixed = MixedRows({name: opened[name, length] for name in shares}, shares, first)
        for name, count in mixed.counts(recipe.stage_steps(stage) * size).items():
            begun[name, length] = first[name] + count
        stages.append(mixed)
    return tuple(stages)


def _open(name: str, length: int, recipe: Recipe, corpora: dict[str, Corpus], tokenizer: Tokenizer) -> Rows:
    every = recipe.document_stride
    if name == NEEDLES:
        return NeedleRows(corpora[recipe.corpus], tokenizer, length, "train", recipe.seed, every=every)
    return PackedTokens(corpora[name], tokenizer, length, "train", recipe.seed, every=every)
