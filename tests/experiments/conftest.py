"""A corpus small enough that a unit of a study takes seconds."""

import random
from pathlib import Path

import pytest

from experiments.lib import runs
from fourfold.data.corpus import write_corpus
from fourfold.data.documents import Document
from fourfold.text.tokenizer import Tokenizer

WORDS = "the a cat dog bird sees hears chases one two many small old red café über and then but not".split()


@pytest.fixture
def small_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Taken by every study instead of tiny-text."""
    folder, draw = tmp_path / "corpus", random.Random(1)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(5, 60))) + ".\n" for _ in range(300)]
    documents = [Document(f"d{i}", "made", text) for i, text in enumerate(texts)]
    tokenizer = Tokenizer.train(texts, vocab_size=320)
    (folder / "tokenizer").mkdir(parents=True)
    tokenizer.save(folder / "tokenizer")
    write_corpus(folder, "small", {"train": documents[40:], "held_out": documents[:40]}, tokenizer)
    monkeypatch.setattr(runs, "CORPUS", str(folder))
    return folder
