"""Corpora: the shipped one keeps its splits apart, damage is seen, and bad input is one line that names the place."""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path

import pytest

from fourfold import paths
from fourfold.cli.main import main
from fourfold.data.corpus import Corpus, split_documents, write_corpus
from fourfold.data.documents import Document, read_documents
from fourfold.errors import DataError, FourfoldError
from fourfold.files import atomic_folder
from fourfold.text.tokenizer import Tokenizer

SOURCES = {"wordnet", "factbook", "recipes", "novels", "speeches", "python", "chat"}


@pytest.fixture(scope="module")
def shipped() -> Corpus:
    return Corpus.open("tiny-text")


def test_the_shipped_corpus_keeps_its_splits_apart(shipped: Corpus) -> None:
    rows = {split: list(shipped.documents(split)) for split in shipped.splits}
    assert set(rows) == {"train", "held_out"}
    ids = {split: {d.id for d in documents} for split, documents in rows.items()}
    texts = {split: {hashlib.sha256(d.text.encode()).digest() for d in documents} for split, documents in rows.items()}
    for split, documents in rows.items():
        about = shipped.about["splits"][split]
        assert len(ids[split]) == len(texts[split]) == len(documents) == about["documents"]  # no repeats either
        assert sum(d.size for d in documents) == about["bytes"]
        assert {d.source for d in documents} == SOURCES
    assert not ids["train"] & ids["held_out"] and not texts["train"] & texts["held_out"]
    glosses = {line for d in rows["train"] if d.source == "wordnet" for line in d.text.split("\n") if len(line) > 40}
    assert not [line for d in rows["held_out"] if d.source == "wordnet" for line in d.text.split("\n") if line in glosses]
    assert "novels/persuasion" in ids["held_out"]
    held_out = {d.id.split("/")[1] for d in rows["held_out"] if d.source == "factbook"}
    asked = {s: {d.id.split("/")[2] for d in rows[s] if d.id.startswith("chat/factbook/")} for s in rows}
    assert asked["held_out"] == held_out and not asked["train"] & held_out  # questions go where their facts are
    share = shipped.about["splits"]["held_out"]["bytes"] / sum(s["bytes"] for s in shipped.about["splits"].values())
    assert 0.02 < share < 0.04


def test_every_source_says_where_it_came_from(shipped: Corpus) -> None:
    licences = (shipped.folder.parent / "LICENSES.md").read_text()
    for name, pin in shipped.about["packages"].items():
        assert re.fullmatch(r"[0-9a-f]{64}", pin["sha256"]), name
        assert f"`{pin['package']}` {pin['version']}" in licences
    assert all(shipped.about["sources"][name]["licence"] for name in SOURCES)
    assert "WordNet 3.0 Copyright 2006 by Princeton University" in licences
    assert sum(f["size"] for s in shipped.about["splits"].values() for f in s["files"]) < 15e6


@pytest.fixture
def small(tmp_path: Path, tokenizer: Tokenizer) -> Corpus:
    splits, _ = split_documents(Document(f"d{i}", "cats", f"the cat {i}") for i in range(20))
    with atomic_folder(tmp_path / "small") as folder:
        write_corpus(folder, "small", splits, tokenizer)
    return Corpus.open(tmp_path / "small")


def test_damage_is_reported_in_one_line(small: Corpus, capfd: pytest.CaptureFixture) -> None:
    file = small.folder / "train-00000.parquet"
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:40] + b"\xff" + whole[41:], b""):
        file.write_bytes(damaged)
        with pytest.raises(DataError, match=r"^[^\n]*train-00000\.parquet: is damaged [^\n]+$"):
            list(small.documents("train"))
        assert main(["data", "show", str(small.folder)]) == 2
        assert re.fullmatch(r"error: [^\n]*train-00000\.parquet: is damaged [^\n]+\n", capfd.readouterr().err)
    file.unlink()
    with pytest.raises(DataError, match="is missing"):
        list(small.documents("train"))
    (small.folder / "corpus.json").write_text('{"name": "sm')
    with pytest.raises(DataError, match=r"^[^\n]*corpus\.json: is damaged[^\n]+$"):
        Corpus.open(small.folder)
    (small.folder / "corpus.json").unlink()
    with pytest.raises(DataError, match="is not a corpus"):
        Corpus.open(small.folder)
    with pytest.raises(DataError, match="no such corpus"):
        Corpus.open("nowhere-to-be-found")


def test_the_same_documents_give_the_same_bytes(small: Corpus, tmp_path: Path, tokenizer: Tokenizer) -> None:
    again = tmp_path / "again"
    again.mkdir()
    write_corpus(again, "again", {s: list(small.documents(s)) for s in small.splits}, tokenizer)
    assert Corpus.open(again).checksums == small.checksums


def test_the_split_goes_by_id_and_repeats_are_left_out() -> None:
    documents = [Document(f"d{i}", "s", f"text {i}") for i in range(400)]
    splits, repeats = split_documents([*documents, Document("copy", "s", "text 7")])
    assert repeats == 1 and 4 <= len(splits["held_out"]) <= 24
    held_out = {d.id for d in splits["held_out"]}
    again, _ = split_documents(documents[100:])  # a document's split does not depend on the others
    assert {d.id for d in again["held_out"]} == {i for i in held_out if int(i[1:]) >= 100}
    for count in range(2, 30):
        for share in (0.0, 0.03, 1.0):
            assert all(split_documents(documents[:count], share)[0].values())
            assert set(split_documents(documents[:count], share)[0]) == {"train", "held_out"}
    assert set(split_documents(documents[:1])[0]) == {"train"}


def test_a_corpus_of_ones_own_files(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    source = tmp_path / "mine"
    (source / "sub").mkdir(parents=True)
    (source / "a.txt").write_bytes("\ufeffGrüße\r\naus Köln\n".encode())
    (source / "sub" / "b.md").write_text("# b\n")
    (source / "c.py").write_text("x = 1\n")
    (source / "skipped.bin").write_bytes(b"\0\1")
    (source / ".hidden.txt").write_text("no")
    chat = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    (source / "d.jsonl").write_text(json.dumps({"text": "one"}) + "\n\n" + json.dumps({"messages": chat}) + "\n")
    out = tmp_path / "out"
    assert main(["data", "build", str(out), "--from", str(source), "--json"]) == 0
    about = json.loads(capfd.readouterr().out)
    corpus = Corpus.open(out)
    found = {d.id: d for split in corpus.splits for d in corpus.documents(split)}
    assert set(found) == {"mine/a.txt", "mine/sub/b.md", "mine/c.py", "mine/d.jsonl:1", "mine/d.jsonl:3"}
    assert found["mine/a.txt"].text == "Grüße\naus Köln" and found["mine/d.jsonl:3"].messages == chat
    assert about["splits"]["train"]["documents"] == 4 and about["splits"]["held_out"]["documents"] == 1
    assert Tokenizer.load(corpus.tokenizer_folder).vocab_size == 8192
    assert main(["data", "build", str(out), "--from", str(source), "--vocab-size", "320", "--limit", "2"]) == 0  # replaced
    assert Tokenizer.load(Corpus.open(out).tokenizer_folder).vocab_size <= 320
    assert "mine" in capfd.readouterr().out


BAD = {
    "empty.txt": (b"", "is empty"),
    "blank.md": (b" \n\n", "is empty"),
    "binary.txt": (b"PNG\0\1", r"is binary \(a zero byte at offset 3\)"),
    "latin.txt": (b"ab\ncaf\xe9 ", r"is not UTF-8 \(byte 0xe9 at offset 6\)"),
    "cut.txt": ("ab é".encode()[:-1], r"is not UTF-8 \(byte 0xc3 at offset 3\)"),
    "empty.jsonl": (b"\n\n", "is empty"),
    "broken.jsonl": (b'{"text": "a"}\n{"text": "b"\n', r"broken\.jsonl:2: is not JSON"),
    "field.jsonl": (b'{"text": "a"}\n\n{"body": "b"}\n', r'field\.jsonl:3: has no "text"'),
    "number.jsonl": (b'{"text": 5}\n', r'number\.jsonl:1: has no "text"'),
    "list.jsonl": (b"[1]\n", r'list\.jsonl:1: has no "text"'),
    "role.jsonl": (b'{"messages": [{"role": "me", "content": "x"}]}\n', r"role\.jsonl:1: messages\[0\]\.role"),
    "deep.jsonl": (b'{"text": "a"}\n' + b"[" * 100_000 + b"\n", r"deep\.jsonl:2: cannot be read as JSON \(maximum recursion"),
    "digits.jsonl": (b"9" * 5000 + b"\n", r"digits\.jsonl:1: cannot be read as JSON \(Exceeds"),
    "thought.jsonl": (
        b'{"messages": [{"role": "assistant", "content": "x", "reasoning_content": 7}]}\n',
        r"thought\.jsonl:1: messages\[0\]\.reasoning_content",
    ),
    "latin.jsonl": (b'{"text": "a"}\n{"text": "\xe9"}\n', r"latin\.jsonl: is not UTF-8 \(byte 0xe9 at offset 24\)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_leaves_nothing(name: str, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    content, says = BAD[name]
    (tmp_path / "good.txt").write_text("good text")
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "out"
    assert main(["data", "build", str(out), "--from", str(tmp_path / "good.txt"), "--from", str(tmp_path / name)]) == 2
    error = capfd.readouterr().err
    assert re.fullmatch(rf"error: [^\n]*{re.escape(name)}[^\n]*\n", error) and re.search(says, error)
    assert {f.name for f in tmp_path.iterdir()} == {"good.txt", name}


def test_lone_surrogates_become_question_marks(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    said = [{"role": "assistant", "content": "c \ud800", "reasoning_content": "d \ud800"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "b \ud800 c"}) + "\n" + json.dumps({"messages": said}) + "\n")
    out = tmp_path / "out"
    assert main(["data", "build", str(out), "--from", str(tmp_path / "a.jsonl"), "--vocab-size", "300"]) == 0
    corpus = Corpus.open(out)
    found = {d.id[-1]: d for split in corpus.splits for d in corpus.documents(split)}
    assert found["1"].text == "b ? c" and found["2"].text == "c ?"
    assert found["2"].messages == [{"role": "assistant", "content": "c ?", "reasoning_content": "d ?"}]


def test_a_single_file_is_a_corpus_with_nothing_held_out(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("the only text")
    assert main(["data", "build", str(tmp_path / "out"), "--from", str(tmp_path / "a.txt")]) == 0
    assert re.fullmatch(r"nothing is held out, [^\n]+: give several files, or JSON lines\n", capfd.readouterr().err)
    assert set(Corpus.open(tmp_path / "out").splits) == {"train"}


def test_a_bare_name_is_a_folder_here_only_if_that_is_a_corpus(
    small: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shipped: Corpus
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny-text").mkdir()
    assert Corpus.open("tiny-text").folder == shipped.folder
    assert Corpus.open("small").folder == Path("small")
    for path in ("./tiny-text", "tiny-text/", tmp_path / "tiny-text", "."):
        with pytest.raises(DataError, match="is not a corpus"):
            Corpus.open(path)


def test_wrong_places_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty").mkdir()
    for place, says in ((tmp_path / "none.txt", "no such file"), (tmp_path / "empty", r"holds no \.txt")):
        with pytest.raises(DataError, match=f"^[^\n]*{says}[^\n]*$"):
            list(read_documents([str(place)]))
    for place in ("", "hub:", "hub::all"):
        with pytest.raises(DataError, match=f"^--from: '{place}' names nothing; give [^\n]+$"):
            list(read_documents([place]))
    pytest.importorskip("datasets")
    with pytest.raises(DataError, match=r"^hub:nobody/nothing: cannot be read [^\n]+ give files$"):
        list(read_documents(["hub:nobody/nothing"]))
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match=r"^hub:x: needs the package `datasets`; pip install datasets$"):
        list(read_documents(["hub:x"]))


def test_a_folder_that_is_no_corpus_is_not_replaced(tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    (tmp_path / "a.txt").write_text("text")
    assert main(["data", "build", str(tmp_path), "--from", str(tmp_path / "a.txt")]) == 2
    assert "is not a corpus; choose another folder" in capfd.readouterr().err
    assert (tmp_path / "a.txt").read_text() == "text"


def test_a_full_disk_leaves_the_old_corpus(small: Corpus, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {f.name: f.read_bytes() for f in small.folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("fourfold.data.corpus.pq.write_table", full)
    with (
        pytest.raises(FourfoldError, match=r"^[^\n]*small: no space left[^\n]*$"),
        atomic_folder(small.folder) as folder,
    ):
        write_corpus(folder, "small", {"train": [Document("d", "s", "the cat")]}, tokenizer)
    assert {f.name: f.read_bytes() for f in small.folder.iterdir()} == before
    assert [f.name for f in small.folder.parent.iterdir()] == ["small"]


def test_show_says_what_there_is(small: Corpus, capfd: pytest.CaptureFixture, fourfold_home: Path) -> None:
    assert main(["data", "show", "tiny-text"]) == 0
    said = capfd.readouterr().out
    assert all(source in said for source in SOURCES) and "WordNet 3.0 licence" in said and "train-00000.parquet" in said
    assert main(["data", "show", "tiny-text", "--json"]) == 0  # one corpus: an object
    about = json.loads(capfd.readouterr().out)
    assert about["name"] == "tiny-text" and about["verified"] and about["splits"]["train"]["tokens"] > 10_000_000
    shutil.copytree(small.folder, fourfold_home / "corpora" / "small")
    try:
        assert main(["data", "--json"]) == 0  # several: a list
        assert [c["name"] for c in json.loads(capfd.readouterr().out)] == ["small", "tiny-chat", "tiny-omni", "tiny-text"]
    finally:
        shutil.rmtree(fourfold_home / "corpora")


def test_the_shipped_tokenizer_belongs_to_the_corpus(shipped: Corpus) -> None:
    assert shipped.tokenizer_folder == paths.bundled("corpora") / "tiny-text" / "tokenizer"
    assert Tokenizer.load(shipped.tokenizer_folder).checksum == shipped.about["tokenizer_sha256"]
