"""Packing: every token once an epoch, a pure function of the step, and no document sees another."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fourfold.data.corpus import Corpus, write_corpus
from fourfold.data.documents import Document, encode_documents
from fourfold.data.packing import PackedTokens, permutation, tokenise
from fourfold.errors import DataError
from fourfold.text.tokenizer import Tokenizer

CHAT = [{"role": "user", "content": "the cat?"}, {"role": "assistant", "content": "sat on <|eos|> the mat"}]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Corpus:
    """Documents of 1 to 400 words, a chat, and one that types control tokens."""
    documents = [Document(f"d{i}", "cats", f"document {i} " + "the cat sat on the mat " * (i * i % 67)) for i in range(40)]
    documents.append(Document.chat("chat", "chat", CHAT))
    documents.append(Document("typed", "cats", "<|bos|><|eos|> typed"))
    folder = tmp_path_factory.mktemp("corpora") / "cats"
    folder.mkdir()
    write_corpus(folder, "cats", {"train": documents, "held_out": [Document("short", "cats", "ran off")]}, tokenizer)
    return Corpus.open(folder)


@pytest.fixture(scope="module")
def stream(corpus: Corpus, tokenizer: Tokenizer) -> list[int]:
    return [i for ids in encode_documents(corpus.documents("train"), tokenizer) for i in ids]


def test_an_epoch_holds_every_token_once(corpus: Corpus, tokenizer: Tokenizer, stream: list[int]) -> None:
    for length in (1, 7, 64, 65):
        packed = PackedTokens(corpus, tokenizer, length, seed=3)
        seen, _ = packed.batch(0, packed.rows)
        order = [packed.row_at(i) for i in range(packed.rows)]
        whole = torch.cat([seen[order.index(r)] for r in range(packed.rows)])
        assert whole[: len(stream)].tolist() == stream
        spare = len(whole) - len(stream)
        assert 0 <= spare <= length and whole[len(stream) :].tolist() == stream[:spare]  # no padding: filled from the start


def test_a_batch_depends_on_the_step_alone(corpus: Corpus, tokenizer: Tokenizer) -> None:
    packed = PackedTokens(corpus, tokenizer, 32, seed=1)
    steps = 2 * packed.rows // 3 + 2  # into the third epoch
    batches = [packed.batch(step, 3) for step in range(steps)]
    fresh = PackedTokens(corpus, tokenizer, 32, seed=1)
    for step in reversed(range(steps)):  # another object, another order, as after a resume
        for ours, again in zip(batches[step], fresh.batch(step, 3), strict=True):
            assert torch.equal(ours, again)
    singles = torch.cat([fresh.batch(i, 1)[0] for i in range(9)])
    assert torch.equal(singles, torch.cat([b[0] for b in batches[:3]]))  # the batch size only groups the rows
    other = PackedTokens(corpus, tokenizer, 32, seed=2).batch(0, 3)[0]
    assert not torch.equal(batches[0][0], other)


def test_documents_are_kept_apart(corpus: Corpus, tokenizer: Tokenizer) -> None:
    packed = PackedTokens(corpus, tokenizer, 48)
    tokens, documents = packed.take(list(range(packed.rows)))
    assert tokens.dtype == documents.dtype == torch.int64 and tokens.shape == documents.shape == (packed.rows, 49)
    starts = tokens == tokenizer.special("bos")
    changes = documents[:, 1:] != documents[:, :-1]
    assert torch.equal(changes, starts[:, 1:])  # a new number exactly where a document begins
    assert not set(documents[3].tolist()) & set(documents[4].tolist())  # nor does a row share one with another
    for row, numbers in zip(tokens.tolist(), documents.tolist(), strict=True):
        for number in set(numbers):
            piece = [t for t, n in zip(row, numbers, strict=True) if n == number]
            assert tokenizer.special("eos") not in piece[:-1] and tokenizer.special("bos") not in piece[1:]


def test_a_chat_is_rendered_and_typed_control_tokens_are_text(corpus: Corpus, tokenizer: Tokenizer) -> None:
    (document,) = [d for d in corpus.documents("train") if d.messages]
    (chat,) = encode_documents([document], tokenizer)
    assert tokenizer.decode(chat, skip_special=False) == (
        "<|bos|><|user|>the cat?<|end|><|assistant|>sat on <|eos|> the mat<|end|><|eos|>"
    )
    assert chat.count(tokenizer.special("eos")) == 1


def test_the_order_of_rows_is_pinned() -> None:
    """No library's random generator is asked, so these hold everywhere, for ever."""
    assert permutation(10, 0, 0).tolist() == [6, 4, 7, 2, 8, 5, 9, 1, 0, 3]
    assert permutation(10, 0, 1).tolist() == [1, 3, 0, 7, 8, 5, 6, 2, 9, 4]
    assert sorted(permutation(1000, 5, 2).tolist()) == list(range(1000))


def test_the_cache_is_written_once_and_whole(corpus: Corpus, tokenizer: Tokenizer, stream: list[int], tmp_path: Path) -> None:
    first = tokenise(corpus, tokenizer, "train", tmp_path)
    assert first.dtype == np.uint16 and isinstance(first, np.memmap) and first.tolist() == stream
    (file,) = tmp_path.iterdir()
    stamp = file.stat().st_mtime_ns
    tokenise(corpus, tokenizer, "train", tmp_path)
    assert file.stat().st_mtime_ns == stamp
    other = Tokenizer.train(["quite other text " * 20], 320)
    tokenise(corpus, other, "train", tmp_path)
    assert len(list(tmp_path.iterdir())) == 2  # another tokenizer, another file


def test_an_interrupted_tokenisation_leaves_nothing(
    corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> Iterator[list[int]]:
        yield [1, 2]
        raise KeyboardInterrupt

    monkeypatch.setattr("fourfold.data.packing.encode_documents", interrupted)
    with pytest.raises(KeyboardInterrupt):
        tokenise(corpus, tokenizer, "train", tmp_path)
    assert not list(tmp_path.iterdir())


def test_processes_that_start_together_get_the_same_tokens(corpus: Corpus, tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    program = (
        "import sys, json; from pathlib import Path; from fourfold.data.corpus import Corpus; "
        "from fourfold.data.packing import PackedTokens; from fourfold.text.tokenizer import Tokenizer; "
        "corpus, tokenizer = Corpus.open(sys.argv[1]), Tokenizer.load(sys.argv[2]); "
        "p = PackedTokens(corpus, tokenizer, 16, cache=Path(sys.argv[2]) / 'cache'); "
        "print(json.dumps(p.batch(5, 2)[0].tolist()))"
    )
    command = [sys.executable, "-c", program, str(corpus.folder), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(2)]
    results = [json.loads(p.communicate()[0]) for p in running]
    assert results[0] == results[1] == PackedTokens(corpus, tokenizer, 16).batch(5, 2)[0].tolist()
    assert [f.suffix for f in (tmp_path / "cache").iterdir()] == [".npy"]


def test_a_split_shorter_than_a_row_is_one_line(corpus: Corpus, tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match=r"^[^\n]*cats: held_out has \d+ tokens, a row takes 257; [^\n]+$"):
        PackedTokens(corpus, tokenizer, 256, "held_out")
    with pytest.raises(DataError, match="has no split dev; it has train, held_out"):
        PackedTokens(corpus, tokenizer, 8, "dev")
