"""The tokenizer: any text comes back, typed control tokens stay text, and everything is the same on every machine."""

import hashlib
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from fourfold import paths
from fourfold.errors import DataError
from fourfold.text.tokenizer import SPECIALS, StreamDecoder, Tokenizer

SHIPPED = paths.bundled("corpora") / "tiny-text" / "tokenizer"
FILE_SHA256 = "2e7b9db37eee6c776d6df6c81fc9759291350504790e574d6b6e4b197aa8b9d8"
CLASSES_SHA256 = "e705a3fb9701a53d11018a778c416b945ccfa9fde6319afdce3a1512ddfe0ffd"
IDS_SHA256 = "a80256cb9ab7eedf2a35973fb24a21baef6a7edfcfa7e94ab6dedf91b7709164"
SAMPLE = "The cat's 1984 café\tcosts €3.50…\r\n\n    def f(x): return x ** 2  # 漢字 🙂 e\u0301 \u00a0 NAÏVE ﬁne\n"

anything = st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
tricky = st.lists(st.sampled_from([*SPECIALS, "<|", "|>", " ", "\n", "user", "é", "\u200d", "🙂", "1"]), max_size=12).map("".join)


@pytest.fixture(scope="module")
def shipped() -> Tokenizer:
    return Tokenizer.load(SHIPPED)


@given(text=anything | tricky)
def test_any_text_comes_back_without_control_tokens(shipped: Tokenizer, text: str) -> None:
    ids = shipped.encode(text)
    assert shipped.decode(ids) == text
    assert not shipped.special_ids & set(ids)
    assert shipped.encode_many([text]) == [ids]


@given(ids=st.lists(st.integers(-5, 9000), max_size=40), skip=st.booleans())
def test_streaming_any_ids_gives_the_text_of_decode(shipped: Tokenizer, ids: list[int], skip: bool) -> None:
    decoder = StreamDecoder(shipped, skip)
    assert "".join([*map(decoder.push, ids), decoder.finish()]) == shipped.decode(ids, skip)


def test_streaming_holds_back_part_of_a_character(shipped: Tokenizer) -> None:
    decoder, ids = StreamDecoder(shipped), shipped.encode("🦩")
    assert len(ids) > 1
    assert [decoder.push(i) for i in ids] == [""] * (len(ids) - 1) + ["🦩"]
    assert decoder.push(ids[0]) == "" and decoder.finish() == "\ufffd"


def test_control_tokens_have_the_first_ids(shipped: Tokenizer) -> None:
    assert len(SPECIALS) == 32 and shipped.vocab_size == 8192
    assert [shipped.special(t) for t in SPECIALS] == list(range(32)) == [shipped.special(t[2:-2]) for t in SPECIALS]
    assert shipped.decode([1, *shipped.encode("hi"), 2]) == "hi"
    assert shipped.decode([1, *shipped.encode("hi"), 2], skip_special=False) == "<|bos|>hi<|eos|>"


def test_digits_stand_alone(shipped: Tokenizer) -> None:
    pieces = [shipped.decode([i]) for i in shipped.encode("In 1984 or 007")]
    assert [p for p in pieces if p.strip().isdigit()] == list("1984007")


def test_lone_surrogates_do_not_stop_it(shipped: Tokenizer) -> None:
    assert shipped.decode(shipped.encode("a\ud800b")) == "a?b"


def fingerprints() -> list:
    """What checkpoints and caches depend on: ids, classes of tokens, and what training makes of a text."""
    tokenizer = Tokenizer.load(SHIPPED)
    classes, count = tokenizer.compression()
    hashes = [hashlib.sha256(json.dumps(values).encode()).hexdigest() for values in (tokenizer.encode(SAMPLE), classes.tolist())]
    return [*hashes, count, Tokenizer.train([SAMPLE * 5, "the cat sat on the mat " * 9], 400).checksum]


PROBE = f"""
import hashlib, json
from pathlib import Path
from fourfold.text.tokenizer import Tokenizer
SAMPLE, SHIPPED = {SAMPLE!r}, Path({str(SHIPPED)!r})
{inspect.getsource(fingerprints)}
print(json.dumps(fingerprints()))
"""


def test_same_ids_classes_and_training_in_every_process() -> None:
    """The hashes are pinned: Engram's table rows depend on them, so a change would break every checkpoint."""
    environment = {**os.environ, "PYTHONHASHSEED": "4242", "PYTHONPATH": str(Path(__file__).parents[2])}
    out = subprocess.run([sys.executable, "-c", PROBE], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(out.stdout) == fingerprints()
    assert fingerprints()[:2] == [IDS_SHA256, CLASSES_SHA256]
    assert hashlib.sha256((SHIPPED / "tokenizer.json").read_bytes()).hexdigest() == FILE_SHA256


def test_compression_joins_what_reads_alike(shipped: Tokenizer) -> None:
    classes, count = shipped.compression()
    assert classes.dtype == torch.int64 and classes.shape == (shipped.vocab_size,)
    firsts = [int((classes == c).nonzero()[0]) for c in range(count)]
    assert firsts == sorted(firsts)  # numbered by first id, none left out
    assert count < 0.85 * shipped.vocab_size

    def of(text: str) -> int:
        (id,) = shipped.encode(text)
        return int(classes[id])

    assert of(" the") == of("the") == of("The") == of(" The")
    assert of("\n") == of(" ") == of("\t") != of("a")
    assert of("a") == of("A") != of("b")
    assert classes[:32].tolist() == list(range(32))  # control tokens, each its own
    assert all((classes == c).sum() == 1 for c in range(32))
    partial = [i for i in range(32, shipped.vocab_size) if "\ufffd" in shipped.decode([i])]
    assert len(partial) >= 128 and len({int(classes[i]) for i in partial}) == len(partial)


def test_saved_and_loaded_again_it_is_the_same(shipped: Tokenizer, tmp_path: Path) -> None:
    shipped.save(tmp_path)
    again = Tokenizer.load(tmp_path / "tokenizer.json")
    assert again.encode(SAMPLE) == shipped.encode(SAMPLE) and again.checksum == shipped.checksum


def test_how_answers_are_drawn_goes_with_a_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "copy").mkdir()
    bundled = Tokenizer.load(paths.bundled("models") / "nano")
    bundled.save(tmp_path / "copy")
    assert Tokenizer.load(tmp_path / "copy").settings.sampling == bundled.settings.sampling == {"temperature": 0.6, "top_p": 0.95}


def test_other_tools_read_the_same_ids() -> None:
    theirs, ours = AutoTokenizer.from_pretrained(SHIPPED), Tokenizer.load(SHIPPED)
    assert theirs.encode(SAMPLE, add_special_tokens=False) == ours.encode(SAMPLE)
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id, len(theirs)) == (1, 2, 0, 8192)
    assert theirs.encode("<|user|>") == [ours.special("user")]  # theirs can be talked into it; ours cannot


@pytest.mark.parametrize("content", [None, "", "{}", "not json", '{"model": {"type": "BPE"}}'])
def test_a_missing_or_broken_file_is_one_line(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(DataError, match=r"^[^\n]*tokenizer\.json: [^\n]+$"):
        Tokenizer.load(tmp_path)
