"""What a run reads: packed rows of a corpus to train on, others held out, and what its tokenizer asks of the model."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.data.corpus import Corpus
from fourfold.data.packing import PackedTokens
from fourfold.errors import DataError
from fourfold.text.tokenizer import Tokenizer
from fourfold.training.recipes import Recipe


@dataclass(frozen=True)
class TrainingData:
    """Rows of a recipe's length. `checksums` identify corpus and tokenizer; a resumed run must find them unchanged."""

    tokenizer: Tokenizer
    train: PackedTokens
    held_out: PackedTokens | None  # a corpus may have none
    checksums: dict[str, str]

    @classmethod
    def open(cls, recipe: Recipe) -> "TrainingData":
        """The recipe's corpus, with its own tokenizer unless the recipe names another. Raises DataError."""
        corpus = Corpus.open(recipe.corpus)
        folder = Path(recipe.tokenizer) if recipe.tokenizer else corpus.tokenizer_folder
        if folder is None:
            raise DataError(f"{corpus.folder}: has no tokenizer of its own; name one with --set tokenizer=FOLDER")
        tokenizer = Tokenizer.load(folder)
        length, seed = recipe.sequence_length, recipe.seed
        train = PackedTokens(corpus, tokenizer, length, "train", seed, every=recipe.document_stride)
        held_out = PackedTokens(corpus, tokenizer, length, "held_out", seed) if "held_out" in corpus.splits else None
        return cls(tokenizer, train, held_out, {**corpus.checksums, "tokenizer": tokenizer.checksum})

    def fit(self, config: ModelConfig) -> ModelConfig:
        """The config with the sizes that follow from the tokenizer: vocabulary, control tokens, Engram's token classes."""
        specials = {f"{name}_token_id": self.tokenizer.special(name) for name in ("pad", "bos", "eos")}
        changes = {"vocab_size": self.tokenizer.vocab_size, **specials}
        if config.memory is not None:
            classes = self.token_classes
            pad, count = int(classes[specials["pad_token_id"]]), int(classes.max()) + 1
            changes["memory"] = config.memory.but(engram_compressed_vocab_size=count, engram_pad_id=pad)
        return config.but(**changes)

    @cached_property
    def token_classes(self) -> Tensor:
        """[vocab] int64: Engram's compression of the vocabulary."""
        return self.tokenizer.compression()[0]

    @cached_property
    def token_bytes(self) -> Tensor:
        """[vocab] int64: UTF-8 bytes that each token stands for, none for control tokens."""
        return torch.tensor([len(self.tokenizer.bytes_of(i)) for i in range(self.tokenizer.vocab_size)])
