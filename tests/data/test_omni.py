"""tiny-omni: whole, its splits apart by concept, voice and sentence, and every kind of its media readable; the reader's errors."""

import gzip
import importlib
import io
import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageSequence

from fourfold import paths
from fourfold.data.corpus import Corpus
from fourfold.data.omni import Item, OmniCorpus, content_checksum, write_omni
from fourfold.errors import DataError
from fourfold.text.tokenizer import Tokenizer

KINDS = {"fluent": "image", "noto": "image", "fashion": "image", "animated": "clip", "sprites": "clip"}
KINDS |= {"speech": "speech", "sounds": "sound"}
CLOTHES = {"t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"}
WAYS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BY_VOICE = ("word", "phrase")  # speech that all voices say, held out by voice alone
Shipped = dict[str, list[Item]]


@pytest.fixture(scope="module")
def corpus() -> OmniCorpus:
    return OmniCorpus.open("tiny-omni")


@pytest.fixture(scope="module")
def shipped(corpus: OmniCorpus) -> Shipped:
    return {split: corpus.items(split) for split in ("train", "held_out")}


def every(items: list[Item], source: str, count: int) -> list[Item]:
    """About `count` items of a source, from all over it."""
    found = [item for item in items if item.source == source]
    return found[:: max(1, len(found) // count)]


def frames(item: Item) -> list[np.ndarray]:
    with Image.open(io.BytesIO(item.media)) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


def test_the_shipped_corpus_is_whole(corpus: OmniCorpus, shipped: Shipped) -> None:
    assert set(corpus.sources) == set(KINDS)
    for split, items in shipped.items():
        about = corpus.corpus.about["splits"][split]
        assert len(items) == about["documents"] == len({item.id for item in items})
        assert sum(len(item.media) + len(item.text.encode()) for item in items) == about["bytes"]
        assert all(item.kind == KINDS[item.source] and item.text.strip() == item.text != "" for item in items)
        for source, row in corpus.sources.items():
            own = [item for item in items if item.source == source]
            assert content_checksum(own) == row["splits"][split]["content_sha256"]
            if source != "fashion":  # as many as all others together ten times over
                assert content_checksum(own, media=False) == row["splits"][split]["words_sha256"]
    assert not {item.id for item in shipped["train"]} & {item.id for item in shipped["held_out"]}
    sizes = [f["size"] for about in corpus.corpus.about["splits"].values() for f in about["files"]]
    assert max(sizes) < 40e6 and sum(sizes) < 70e6


def test_nothing_is_in_both_splits(shipped: Shipped) -> None:
    """No concept, whatever its source; no picture, clip or sound twice."""
    by_rule = {
        split: [item for item in items if item.source != "fashion" and item.details.get("task") not in BY_VOICE]
        for split, items in shipped.items()
    }
    concepts = {split: {item.concept for item in items} for split, items in by_rule.items()}
    assert not concepts["train"] & concepts["held_out"]
    emoji = {s: {i.concept for i in items if i.source in ("fluent", "noto")} for s, items in by_rule.items()}
    assert 0.09 < len(emoji["held_out"]) / sum(map(len, emoji.values())) < 0.15
    for source in ("animated", "sprites", "speech"):  # what is held out as a picture is held out here, and there is some
        assert len(concepts["held_out"] & {i.concept for i in by_rule["held_out"] if i.source == source} & emoji["held_out"]) > 10
    media = [item.media for items in shipped.values() for item in items]
    assert len(set(media)) == len(media)
    names = {i.text.lower() for i in shipped["held_out"] if i.source in ("fluent", "noto")}
    spoken = {i.text for i in shipped["train"] if i.source == "speech"} | {i.details.get("object") for i in shipped["train"]}
    assert not names & spoken


def test_held_out_voices_and_what_they_say_are_new(shipped: Shipped) -> None:
    speech = {split: [item for item in items if item.source == "speech"] for split, items in shipped.items()}
    speakers = {split: {item.details["speaker"] for item in items} for split, items in speech.items()}
    assert not speakers["train"] & speakers["held_out"] and {"awb", "kal", "slt"} <= speakers["train"]
    voices = {split: {(item.details["engine"], item.details["voice"]) for item in items} for split, items in speech.items()}
    assert ("flite", "rms") in voices["held_out"] and {engine for engine, _ in voices["held_out"]} == {"flite", "espeak"}
    assert {"kal", "kal16"} <= {i.details["voice"] for i in speech["train"] if i.details["speaker"] == "kal"}
    said = {split: defaultdict(set) for split in speech}
    for split, items in speech.items():
        for item in items:
            said[split][item.details["task"] in BY_VOICE].add(item.text)
            assert re.fullmatch(r"[a-z'’-]+( [a-z'’-]+)*", item.text), item.id
    assert not said["held_out"][False] & (said["train"][False] | said["train"][True])
    assert said["held_out"][True] == said["train"][True] and 45 <= len(said["train"][True]) <= 70
    heard = Counter(item.text for item in speech["train"] if item.details["task"] == "word")
    assert min(heard.values()) >= 20 and len({item.details["voice"] for item in speech["train"]}) >= 15


def test_fashion_mnist_is_all_there(shipped: Shipped) -> None:
    for split, each in (("train", 6000), ("held_out", 1000)):
        items = [item for item in shipped[split] if item.source == "fashion"]
        assert Counter(item.text for item in items) == dict.fromkeys(CLOTHES, each)
        assert sorted(item.details["index"] for item in items) == list(range(10 * each))
        assert len({(item.text, item.details["class"]) for item in items}) == 10
    first = {item.id: item for item in shipped["held_out"] if item.source == "fashion"}["fashion/held_out/0"]
    pixels = np.asarray(Image.open(io.BytesIO(first.media)).convert("L"))  # the sum of its grey values, from the idx file
    assert first.text == "ankle boot" and pixels.shape == (28, 28) and int(pixels.sum()) == FIRST_OF_THE_TEST_SPLIT


FIRST_OF_THE_TEST_SPLIT = 33456


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_pictures_are_read(shipped: Shipped, split: str) -> None:
    for source, side, mode in (("fluent", 64, "RGBA"), ("noto", 64, "RGBA"), ("fashion", 28, "RGB")):
        for item in every(shipped[split], source, 40):
            with Image.open(io.BytesIO(item.media)) as image:
                image.load()
                assert image.size == (side, side) and image.mode == mode, item.id
                shown = np.asarray(image.convert("RGBA")).astype(int)
            assert shown[shown[..., 3] > 0].std(0).max() > 2 and shown[..., 3].mean() > 10, item.id
            assert source == "fashion" or (item.details["style"] == source and item.text not in item.details["tags"]), item.id


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_clips_are_a_second_long_and_move(shipped: Shipped, split: str) -> None:
    for item in every(shipped[split], "animated", 20) + every(shipped[split], "sprites", 40):
        with Image.open(io.BytesIO(item.media)) as image:
            assert image.size == (32, 32) and 2 <= image.n_frames <= 8, item.id
            shown = [frame.convert("RGB").info["duration"] for frame in ImageSequence.Iterator(image)]
        assert sum(shown) == 1000 and all(ms % 125 == 0 for ms in shown), item.id
        first, *others = frames(item)
        assert any((frame != first).any() for frame in others)


def test_sprites_do_what_their_captions_say(shipped: Shipped) -> None:
    """The middle and the spread of what is not ground, in the first and the last frame."""
    sprites = {split: [item for item in items if item.source == "sprites"] for split, items in shipped.items()}
    counts = Counter(item.details["motion"] for item in sprites["train"])
    assert len(counts) >= 8 and min(counts.values()) > 0.8 * max(counts.values())
    for item in [item for items in sprites.values() for item in items[:: len(items) // 60]]:
        motion, (start, end) = item.details["motion"], [extent(frame) for frame in (frames(item)[0], frames(item)[-1])]
        assert item.text.startswith(f"the {item.details['object']} ")
        if motion in ("grows", "shrinks"):
            assert item.text.endswith(motion) and (end[2] > 1.6 * start[2]) == (motion == "grows") != (start[2] > 1.6 * end[2])
        elif motion.split()[0] in WAYS:
            assert item.text.endswith("moves " + motion.replace(" ", " and to the "))
            wanted = np.sum([WAYS[word] for word in motion.split()], 0) * 14
            assert np.abs(np.subtract(end[:2], start[:2]) - wanted).max() < 1.5, item.id


def extent(frame: np.ndarray) -> tuple[float, float, float]:
    """Column and row of the middle of all that differs from the ground, and its area in pixels."""
    ground = Counter(map(tuple, frame.reshape(-1, 3))).most_common(1)[0][0]
    rows, columns = np.nonzero(np.abs(frame.astype(int) - ground).max(-1) > 24)
    return columns.mean(), rows.mean(), float(len(rows))


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_speech_and_sounds_are_heard(shipped: Shipped, split: str) -> None:
    for item in every(shipped[split], "speech", 80) + every(shipped[split], "sounds", 80):
        samples, rate = soundfile.read(io.BytesIO(item.media))
        assert rate == 16000 and samples.ndim == 1, item.id
        assert len(samples) / rate == pytest.approx(item.details["seconds"], abs=0.001), item.id
        assert 0.1 < np.abs(samples).max() < 1 and np.sqrt((samples**2).mean()) > 0.005, item.id
        if item.source == "speech":  # a letter takes a voice some 70 ms
            assert 0.03 < item.details["seconds"] / len(item.text) < 0.3, item.id
            assert len(item.media) * 8 / item.details["seconds"] < 24_000


def test_sounds_have_families_in_both_splits(shipped: Shipped) -> None:
    families = {s: Counter(i.details["family"] for i in items if i.source == "sounds") for s, items in shipped.items()}
    assert set(families["train"]) == set(families["held_out"]) and len(families["train"]) >= 12
    assert 25 <= families["held_out"].total() <= 35 and families["train"].total() > 120


def test_every_source_says_where_it_came_from(corpus: OmniCorpus) -> None:
    licences = (corpus.corpus.folder.parent / "LICENSES.md").read_text("utf-8")
    for name, pin in corpus.corpus.about["packages"].items():
        assert re.fullmatch(r"[0-9a-f]{64}", pin["sha256"]), name
        assert f"`{pin['package']}` {pin['version']}" in licences
    assert all(source["licence"] and f"| `{name}` |" in licences for name, source in corpus.sources.items())
    for notice in ("Copyright (c) Microsoft", "2017 Zalando SE", "2017-2019 Miles Johnson", "Google", "Carnegie Mellon"):
        assert notice in licences


@pytest.fixture
def small(tmp_path: Path, tokenizer: Tokenizer) -> OmniCorpus:
    items = [Item(f"{source}/{i}", source, "image", bytes([i]), f"cat {i}", str(i), {"i": i}) for i in range(5) for source in "ab"]
    (tmp_path / "small").mkdir()
    write_omni(tmp_path / "small", "small", {"train": items[:6], "held_out": items[6:7]}, tokenizer, {"a": {"licence": "MIT"}})
    return OmniCorpus.open(tmp_path / "small")


def test_items_come_back_as_they_were(small: OmniCorpus, tmp_path: Path, tokenizer: Tokenizer) -> None:
    assert [item.id for item in small.items("train")] == ["a/0", "a/1", "a/2", "b/0", "b/1", "b/2"]
    assert small.items("train", ["b"])[1] == Item("b/1", "b", "image", b"\1", "cat 1", "1", {"i": 1})
    assert [item.id for item in small.items("held_out")] == ["a/3"] and small.items("held_out", ["b"]) == []
    assert small.sources["a"]["licence"] == "MIT" and small.sources["a"]["splits"]["train"]["documents"] == 3
    (tmp_path / "again").mkdir()
    write_omni(tmp_path / "again", "again", {s: small.items(s) for s in ("train", "held_out")}, tokenizer)
    assert Corpus.open(tmp_path / "again").checksums == small.corpus.checksums
    assert OmniCorpus.open(tmp_path / "again").checksum("train") == small.checksum("train")
    assert content_checksum(small.items("train")) != content_checksum(small.items("train")[::-1])


def test_real_recordings_are_read_with_their_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer) -> None:
    """The command that fetches Asterisk's prompts, from where the packages are unpacked on."""
    monkeypatch.syspath_prepend(str(paths.bundled("corpora")))
    asterisk = importlib.import_module("builders.omni_asterisk")
    listing = """; remarks: none
hello: Hello, World!  Press 1.
beep: [a beep]
at: at [@]
dial: Dial 600.
lost: This file is missing.
"""
    (tmp_path / "core-sounds-en.txt.gz").write_bytes(gzip.compress(listing.encode()))
    (tmp_path / "en_US_f_Allison").mkdir()
    for name in ("hello", "beep", "at", "dial"):
        soundfile.write(tmp_path / "en_US_f_Allison" / f"{name}.wav", np.zeros(4000), 8000, "PCM_16")
    items = asterisk.build(tmp_path, tmp_path)
    assert [(item.id, item.text, item.details["seconds"]) for item in items] == [
        ("asterisk/hello", "hello world press one", 0.5),
        ("asterisk/at", "at", 0.5),
    ]
    write_omni(tmp_path, "asterisk", {"held_out": items}, tokenizer)
    assert OmniCorpus.open(tmp_path).items("held_out") == items


def test_large_sources_are_cut_into_files(tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.data.omni.SHARD_BYTES", 25)
    items = [Item(f"a-b/{i}", "a-b", "image", bytes([i] * 10), "cat", str(i)) for i in range(5)]
    write_omni(tmp_path, "cut", {"train": items}, tokenizer)
    found = OmniCorpus.open(tmp_path)
    assert found.items("train", ["a-b"]) == items
    assert [f.name for f in found.corpus.files("train")] == [f"train-a-b-{i:05d}.parquet" for i in range(3)]


def test_what_cannot_be_read_is_one_line(small: OmniCorpus, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"^[^\n]*small: has no source c; it has a, b$"):
        small.items("train", ["c"])
    with pytest.raises(DataError, match=r"^[^\n]*has no split test; it has train, held_out$"):
        small.items("test")
    with pytest.raises(DataError, match=r"^[^\n]*tiny-text: holds documents[^\n]*; name a corpus like tiny-omni$"):
        OmniCorpus.open("tiny-text")
    with pytest.raises(DataError, match=r"^[^\n]*small: holds items, not documents; name a corpus like tiny-text$"):
        list(small.corpus.documents("train"))
    shutil.copytree(small.corpus.folder, tmp_path / "broken")
    file = tmp_path / "broken" / "train-b-00000.parquet"
    file.write_bytes(file.read_bytes()[:-9])
    broken = OmniCorpus.open(tmp_path / "broken")
    assert len(broken.items("train", ["a"])) == 3
    with pytest.raises(DataError, match=r"^[^\n]*train-b-00000\.parquet: is damaged [^\n]+$"):
        broken.items("train")
    about = json.loads((tmp_path / "broken" / "corpus.json").read_text())
    del about["sources"]
    (tmp_path / "broken" / "corpus.json").write_text(json.dumps(about))
    with pytest.raises(DataError, match=r"^[^\n]*corpus\.json: is damaged; build or copy the corpus again$"):
        OmniCorpus.open(tmp_path / "broken")
