"""A corpus and a recipe small enough that a run of six steps through all three stages takes a second."""

import random
from pathlib import Path

import pytest

from fourfold.data.corpus import write_corpus
from fourfold.data.documents import Document
from fourfold.text.tokenizer import Tokenizer
from fourfold.training import recipes
from fourfold.training.recipes import Recipe

WORDS = "the a cat dog bird sees hears chases one two many small old red café über and then but not".split()


def small_documents(count: int) -> list[Document]:
    draw = random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(5, 60))) + ".\n" for _ in range(count)]
    return [Document(f"d{i}", "made", text) for i, text in enumerate(texts)]


@pytest.fixture(scope="session")
def small_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    documents = small_documents(200)
    tokenizer = Tokenizer.train((d.text for d in documents), vocab_size=320)
    (folder / "tokenizer").mkdir()
    tokenizer.save(folder / "tokenizer")
    write_corpus(folder, "small", {"train": documents[20:], "held_out": documents[:20]}, tokenizer)
    return folder


@pytest.fixture
def settings(small_corpus: Path) -> list[str]:
    """--set values: two steps a stage on rows of 32 tokens."""
    stages = [f"stages.{name}.tokens=128" for name in ("dense", "indexer", "sparse")]
    return [f"corpus={small_corpus}", "sequence_length=32", "batch_size=2", "eval_rows=4", "checkpoint_every=2", *stages]


@pytest.fixture
def small(settings: list[str]) -> Recipe:
    return recipes.override(recipes.recipe("debug"), settings)
