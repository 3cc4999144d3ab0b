"""Documents about media: their exact layout, what of them is learnt, and rows that never cut one."""

import dataclasses
import re
from collections import Counter
from pathlib import Path

import pytest
import torch

from fourfold.data import omni_documents
from fourfold.data.haystack import Draw
from fourfold.data.mixing import MixedRows
from fourfold.data.omni_documents import Documents, name
from fourfold.data.omni_rows import OmniRows, pack
from fourfold.data.omni_wordings import DRAW, EITHER, MATCHES, MOTION, READ, THERE, WHERE, WHICH, WHICH_SAID, with_article
from fourfold.data.rows import GIVEN, RowBatch, joined
from fourfold.data.script import Script, Speech
from fourfold.data.shelf import Codes, Shelf, checksum_of, coloured, pictured
from fourfold.errors import ConfigError, DataError
from fourfold.media import spans
from fourfold.media.codec import Codec
from fourfold.media.images import fit, read_image
from fourfold.modality import Modality
from fourfold.parts import MediaInConfig, MediaOutConfig
from tests.compare import assert_close
from tests.data.small_media import CODES, make_codec, make_corpus, make_tokenizer

SIZES = MediaInConfig(image_patch_size=8, audio_mel_bins=4, image_longest=16, clip_longest=16, clip_frames=4)
OUT = MediaOutConfig(image_token_size=CODES, image_grid=(2, 2), film_grid=(3, 2, 2))


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, tokenizer):
    return make_corpus(tmp_path_factory.mktemp("omni") / "small", tokenizer)


@pytest.fixture(scope="module")
def codec(tmp_path_factory) -> Path:
    return make_codec(tmp_path_factory.mktemp("codec") / "codec")


@pytest.fixture
def shelf(corpus, tokenizer, codec, tmp_path, monkeypatch):
    monkeypatch.setenv("FOURFOLD_HOME", str(tmp_path))
    codes = Codes(corpus, "train", Codec.load(codec), checksum_of(codec), OUT)
    return Shelf(corpus, "train", tokenizer, SIZES, codes)


class Fixed(Draw):
    """A draw whose numbers in [0, 1) are told; the last one again and again."""

    def __init__(self, *numbers: float):
        left = list(numbers)
        self.unit = lambda: left.pop(0) if len(left) > 1 else left[0]


def said(document, tokenizer) -> str:
    """A document as text: control tokens by name, <i> <v> <a> for a patch, <d> <f> for a code."""
    marks = {Modality.IMAGE: "i", Modality.VIDEO: "v", Modality.AUDIO: "a", Modality.DRAWN: "d", Modality.FILMED: "f"}
    span = document.span
    kinds = (Modality(kind) for kind in span.modality.tolist())
    parts = (
        tokenizer.decode([t], skip_special=False) if k is Modality.TEXT else marks[k]
        for t, k in zip(span.tokens.tolist(), kinds, strict=True)
    )
    return "".join(parts)


IMAGE = "<|image|>ii<|row|>ii<|row|><|/image|>"
TASKS = {
    "squares": ("image", IMAGE, "<|draw|>2x2<|frame|>dddd<|/draw|>"),
    "moving": ("clip", "<|video|>" + "<|frame|>ii<|row|>ii<|row|>".replace("i", "v") * 3 + "<|/video|>", None),
}


def test_reading_and_drawing_a_picture_to_the_letter(shelf, tokenizer):
    read = Documents(shelf, "squares", "read").make(Fixed(0.0, 0.0, 0.0, 0.0, 0.0, 0.9))
    question = READ["image"][0]
    assert said(read, tokenizer) == (f"<|bos|><|user|>{IMAGE}{question}<|end|><|assistant|>red square<|end|><|eos|>")
    answer = len(tokenizer.encode("red square")) + 1
    assert read.learnt.tolist() == [GIVEN] * (len(read) - answer - 1) + [Modality.IMAGE] * answer + [GIVEN]
    assert read.span.pixels.shape == (4, 192) and read.span.mel is None and not read.spoken
    drawn = Documents(shelf, "squares", "draw").make(Fixed(0.0, 0.0, 0.0, 0.9, 0.9, 0.5, 0.0))
    asked = DRAW["image"][0].format(t="red square")
    assert said(drawn, tokenizer) == (f"<|bos|><|user|>{asked}<|end|><|assistant|><|draw|>2x2<|frame|>dddd<|/draw|><|end|><|eos|>")
    codes = drawn.span.modality == Modality.DRAWN
    assert (drawn.learnt[codes] == Modality.DRAWN).all() and drawn.span.pixels is None
    opening = 3 + len(tokenizer.encode(asked)) + 1
    assert (drawn.learnt[:opening] == GIVEN).all() and (drawn.learnt[opening:-1] != GIVEN).all() and drawn.learnt[-1] == GIVEN
    pixels = pictured(shelf.of("squares")[0].media, 16, 8)[None, None].float() / 255
    assert drawn.span.tokens[codes].tolist() == shelf.codes.encoder.encode(pixels).flatten().tolist()


def test_a_dropped_condition_leaves_an_empty_turn(shelf, tokenizer):
    kinds = Counter()
    documents = Documents(shelf, "squares+moving", "draw")
    draw = Draw("dropped")
    for _ in range(600):
        text = said(documents.make(draw), tokenizer)
        kinds["<|bos|><|user|><|end|><|assistant|><|" in text] += 1
        assert ("<|draw|>2x2<|frame|>dddd<|/draw|>" in text) != ("<|film|>3x2x2<|frame|>ffff" in text)
    assert 0.06 < kinds[True] / 600 < 0.14


def test_clips_speech_and_sounds(shelf, tokenizer):
    clip = said(Documents(shelf, "moving", "read").make(Draw("clip")), tokenizer)
    frames = "<|video|>" + "<|frame|>vv<|row|>vv<|row|>" * 3 + "<|/video|>"
    assert frames in clip and any(q in clip for q in (*READ["clip"], *MOTION))
    assert clip.endswith(("dot moves right<|end|><|eos|>", "<|assistant|>right<|end|><|eos|>"))
    speech = Documents(shelf, "voices", "read").make(Draw("speech"))
    text = said(speech, tokenizer)
    assert "<|audio|>aaaaa<|/audio|>" in text and text.endswith(" square.<|end|><|eos|>")  # 0.4 s
    [(start, stop, tokens)] = speech.spoken
    assert (speech.span.modality[start:stop] == Modality.AUDIO).all() and stop - start == 5
    assert tokenizer.decode(tokens.tolist()) + "<|end|><|eos|>" == text.split("<|assistant|>")[1]
    sound = Documents(shelf, "beeps", "read").make(Draw("sound"))
    assert "<|audio|>aaa<|/audio|>" in said(sound, tokenizer) and not sound.spoken  # 0.2 s
    assert set(sound.learnt[sound.learnt != GIVEN].tolist()) == {Modality.AUDIO}


def test_the_way_alone_is_asked_where_a_mix_says_so(shelf, tokenizer):
    documents, usual = Documents(shelf, "moving", "way"), Documents(shelf, "moving")
    draw, frames = Draw("way"), "<|video|>" + "<|frame|>vv<|row|>vv<|row|>" * 3 + "<|/video|>"
    for _ in range(30):
        asked, told = said(documents.make(draw), tokenizer).removeprefix("<|bos|><|user|>").split("<|end|><|assistant|>")
        assert asked.replace(frames, "") in MOTION and told == "right<|end|><|eos|>"
    assert all("way" not in tasks for _, tasks, _ in usual.choices)
    with pytest.raises(DataError, match="no item of train is fit"):
        Documents(shelf, "squares", "way")


def test_questions_have_the_right_answers(shelf, tokenizer):
    """By the names in the question and the pixels that are shown, for every form of question."""
    colours = {tuple(shelf.shown(item).pixels[0, ::64].tolist()): item.text for item in shelf.of("patches")}
    documents, draw, seen = Documents(shelf, "patches", "ask"), Draw("ask"), Counter()
    for _ in range(300):
        document = documents.make(draw)
        text = said(document, tokenizer)
        question, answer = text.split("<|end|>")[0].replace(IMAGE, ""), text.split("<|assistant|>")[1].split("<|end|>")[0]
        question = question.removeprefix("<|bos|><|user|>")
        shown = [colours[tuple(patch[::64].tolist())] for patch in document.span.pixels[::4]]
        named = [name for name in colours.values() if with_article(name) in question]
        if answer in ("yes", "no"):
            assert (answer == "yes") == (named == shown)
        elif answer.startswith("the "):
            assert shown[["the first", "the second"].index(answer)] == named[0] and len(shown) == 2
        else:
            assert answer == shown[0] and len(named) == 2 and answer in named
        seen[answer if answer in ("yes", "no") else answer.startswith("the ")] += 1
    assert len(seen) == 4 and seen["yes"] > 0.6 * seen["no"] and seen["no"] > 0.6 * seen["yes"]


def test_several_questions_about_one_clip(shelf, tokenizer):
    """It is shown once; where it is and which way it moves are told as the pixels have it."""
    documents, seen = Documents(shelf, "moving", "talk"), Counter()
    for i in range(60):
        text = said(documents.make(Draw(f"talk/{i}")), tokenizer)
        assert text.count("<|video|>") == 1 and 2 <= text.count("<|assistant|>") <= 4
        turns = [
            turn.split("<|end|><|assistant|>") for turn in re.sub(r"<\|video\|>.*<\|/video\|>", "", text).split("<|user|>")[1:]
        ]
        for asked, told in turns:
            answer = told.split("<|end|>")[0]
            at = next((at for at, ways in WHERE.items() if asked in ways), "")
            assert not at or answer == {"first": "left", "last": "right"}[at]
            assert asked not in MOTION or answer == "right"
            seen[at or asked in MOTION] += 1
    assert min(seen[key] for key in ("first", "last", True)) > 10


def test_spoken_captions_go_with_their_pictures(shelf, tokenizer):
    asked = Documents(shelf, "voices", "ask")
    texts = [said(asked.make(Draw(f"spoken/{i}")), tokenizer) for i in range(40)]
    assert all("<|audio|>aaaaa" in text and IMAGE in text for text in texts)
    assert {text.split("<|assistant|>")[1] for text in texts} == {
        f"{answer}<|end|><|eos|>" for answer in ("yes", "no", "the first", "the second")
    }
    drawn = Documents(shelf, "voices", "draw").make(Draw("drawn"))
    assert "<|draw|>2x2<|frame|>dddd" in said(drawn, tokenizer)
    [(_, _, tokens)] = drawn.spoken
    item = next(i for i in shelf.of("squares") if i.text in tokenizer.decode(tokens.tolist()).lower())
    codes = drawn.span.tokens[drawn.span.modality == Modality.DRAWN]
    assert torch.equal(codes, shelf.codes.of(item, shelf.of).flatten())


def test_a_question_that_is_heard_has_the_right_answer(shelf, tokenizer, monkeypatch):
    """Each spoken item asks after its own patch; no word of a question is written."""
    items = {item.id: item for source in ("patches", "voices") for item in shelf.of(source)}
    for item in items.values():
        item.details["code"] = item.concept
        if item.kind == "speech":
            item.details.update(task="question", about=item.concept)
    monkeypatch.setattr(omni_documents, "ALOUD", 1.0)
    documents, seen = Documents(shelf, "voices", "ask"), Counter()
    colours = {tuple(shelf.shown(item).pixels[0, ::64].tolist()): item.concept for item in shelf.of("patches")}
    for i in range(40):
        document = documents.make(Draw(f"aloud/{i}"))
        turn, told = said(document, tokenizer).split("<|assistant|>")
        assert re.sub(r"<\|audio\|>a+<\|/audio\|>", "", turn.replace(IMAGE, "")) == "<|bos|><|user|><|end|>"
        [(_, _, tokens)] = document.spoken
        about = tokenizer.decode(tokens.tolist()).lower().split()[0]
        is_so = colours[tuple(document.span.pixels[0, ::64].tolist())] == about
        assert told == f"{'yes' if is_so else 'no'}<|end|><|eos|>"
        seen[is_so] += 1
    assert min(seen.values()) > 10


def test_speech_is_learnt_at_many_speeds(shelf, tokenizer):
    heard = [said(Documents(shelf, "voices", "read").make(Draw(f"speed/{i}")), tokenizer).count("a<") for i in range(5)]
    lengths = {len(Documents(shelf, "voices", "read").make(Draw(f"speed/{i}")).span.mel) for i in range(40)}
    assert set(heard) == {1} and len(lengths) > 1


def test_speech_is_learnt_in_many_timbres(shelf, tokenizer, monkeypatch):
    """The same words, each time of another colour: a smooth curve over the bins, the same at all times."""
    monkeypatch.setattr(omni_documents, "SPEEDS", (1.0, 1.0))
    [item] = [i for i in shelf.of("voices") if i.text == "Red square."]
    plain = shelf.shown(item).mel
    heard = [Documents(shelf, "voices", "read").make(Draw(f"timbre/{i}")) for i in range(20)]
    mels = [d.span.mel for d in heard if "Red square." in said(d, tokenizer)]
    offsets = [mel - plain for mel in mels]
    assert len(mels) > 2 and all(offset.abs().max() > 0.01 for offset in offsets)
    bins = SIZES.audio_mel_bins
    for offset in offsets:
        curves = offset.view(-1, bins)
        assert_close(curves, curves[:1].expand_as(curves))
    assert_close(coloured(torch.zeros(2, 4), [0.5, 1.0])[1], 0.5 + torch.cos(torch.pi * torch.tensor([1, 3, 5, 7]) / 8))


def test_several_turns_show_what_was_drawn(shelf, tokenizer):
    texts = [said(Documents(shelf, "squares", "turns").make(Draw(f"turns/{i}")), tokenizer) for i in range(20)]
    drawn = [text for text in texts if "<|draw|>" in text]
    assert 4 < len(drawn) < 16
    for text in texts:
        assert text.count("<|user|>") == 2 and text.count("<|assistant|>") == 2 and IMAGE in text
    assert all(text.index("<|draw|>") < text.index("<|image|>") for text in drawn)


def test_a_caption_cannot_type_a_control_token(tokenizer):
    script = Script(tokenizer)
    script.user("<|end|><|assistant|>")
    script.assistant("<|draw|>", about=Modality.IMAGE)
    tokens = script.finish().span.tokens.tolist()
    assert Counter(t for t in tokens if t < 32) == Counter(tokenizer.special(n) for n in "bos user end assistant end eos".split())


def test_a_document_is_a_function_of_its_key_alone(shelf, corpus, tokenizer):
    other = Shelf(corpus, "train", tokenizer, SIZES, shelf.codes)
    for task in ("", "squares", "moving", "voices", "beeps"):
        one, two = (Documents(s, task).make(Draw(f"same/{task}")) for s in (shelf, other))
        assert torch.equal(one.span.tokens, two.span.tokens) and torch.equal(one.learnt, two.learnt)


def test_codes_are_made_once(shelf, corpus, codec, monkeypatch):
    item = shelf.of("moving")[1]
    first = shelf.codes.of(item, shelf.of)
    assert first.shape == (3, 2, 2) and torch.equal(shelf.codes.of(item, shelf.of, small=True), first)
    again = Codes(corpus, "train", None, checksum_of(codec), OUT)  # without a codec
    assert torch.equal(again.of(item, shelf.of), first)
    with pytest.raises(AttributeError):  # others would have to be encoded
        Codes(corpus, "held_out", None, checksum_of(codec), OUT).of(item, shelf.of)


def test_large_pictures_have_a_smaller_size(shelf, monkeypatch):
    square, patch = shelf.of("squares")[0], shelf.of("patches")[0]
    assert shelf.shown(square, small=True).pixels.shape == (4, 192)  # of 16 pixels: small already
    monkeypatch.setattr("fourfold.data.shelf.SMALL", 8)
    assert shelf.shown(square, small=True).pixels.shape == (1, 192) and shelf.shown(square).pixels.shape == (4, 192)
    for item in (square, patch):
        codes = [shelf.codes.of(item, shelf.of, small) for small in (False, True)]
        assert [tuple(c.shape) for c in codes] == [(1, 2, 2), (1, 1, 1)]
        pixels = pictured(item.media, 8, 8)[None, None].float() / 255
        assert torch.equal(codes[1], shelf.codes.encoder.encode(pixels)[0])


def test_pictures_are_brought_to_the_nearest_size_of_the_grid(shelf):
    patch, square = shelf.of("patches")[0], shelf.of("squares")[0]
    pixels = pictured(patch.media, 16, 8)
    assert torch.equal(pixels, fit(read_image(patch.media), 16, 8)) and pixels.shape == (3, 16, 16)
    assert pictured(square.media, 16, 8)[:, 0, 0].tolist() == [255] * 3
    tinted = pictured(square.media, 16, 8, (1, 2, 3))
    assert tinted[:, 0, 0].tolist() == [1, 2, 3] and tinted[:, 8, 8].tolist() == [220, 30, 30]
    assert pictured(square.media, 8, 8).shape == (3, 8, 8)


def test_what_cannot_be_had_is_one_line(shelf, corpus, tokenizer):
    with pytest.raises(DataError, match="has no emoji; choose of squares|has no emoji; choose of .*squares"):
        Documents(shelf, "emoji")
    with pytest.raises(DataError, match="no item of train is fit for it; choose a task of read, talk, ask, draw, turns"):
        Documents(shelf, "beeps", "draw")
    plain = Shelf(corpus, "train", tokenizer, SIZES)
    assert "draw" not in Documents(plain, "squares").choices[0][1]
    with pytest.raises(ConfigError, match="media_in"):
        Documents(Shelf(corpus, "train", tokenizer, None), "squares", "read").make(Draw("a"))
    with pytest.raises(DataError, match="no document fits a row of 5 tokens; raise sequence_length"):
        OmniRows(Documents(shelf, "squares"), 4, "rows").take([0])


def test_rows_hold_whole_documents_and_padding(shelf, tokenizer):
    rows = OmniRows(Documents(shelf), 127, "rows/1")
    batch = rows.take([3, 7])
    assert batch.tokens.shape == (2, 128) and batch.positions.shape == (3, 2, 128)
    bos, eos, pad = (tokenizer.special(n) for n in ("bos", "eos", "pad"))
    for row in range(2):
        tokens, documents = batch.tokens[row], batch.documents[row]
        for number in documents.unique().tolist():
            own = tokens[documents == number].tolist()
            assert own == [pad] or (own[0] == bos and own[-1] == eos and own.count(bos) == 1)
        pads = (tokens == pad) & (batch.modality[row] == Modality.TEXT)
        assert (batch.learnt[row][pads] == GIVEN).all() and not batch.positions[:, row, pads].any()
    read = (batch.modality == Modality.IMAGE) | (batch.modality == Modality.VIDEO)
    assert len(batch.pixels) == int(read.sum())
    assert len(batch.mel) == int((batch.modality == Modality.AUDIO).sum())
    for said in batch.spoken:
        assert (batch.modality[said.row, said.start : said.stop] == Modality.AUDIO).all()


def test_a_row_is_the_span_of_its_documents(shelf, tokenizer):
    documents = [Documents(shelf).make(Draw(f"pack/{i}")) for i in range(3)]
    width = sum(map(len, documents)) + 3
    row = pack(documents, width, tokenizer.special("pad"))
    at = 0
    for document in documents:
        part = slice(at, at + len(document))
        assert torch.equal(row.tokens[0, part], document.span.tokens)
        assert torch.equal(row.positions[:, 0, part], document.span.positions)
        assert len(row.documents[0, part].unique()) == 1
        at += len(document)
    assert row.documents[0, at:].unique().shape == (3,) and not row.positions[:, 0, at:].any()
    whole = [d.span.pixels for d in documents if d.span.pixels is not None]
    assert torch.equal(row.pixels, torch.cat(whole))


def same(a: RowBatch, b: RowBatch) -> bool:
    """All fields alike; documents by their boundaries."""
    names = ("tokens", "modality", "positions", "learnt", "pixels", "mel")
    values = [(getattr(a, n), getattr(b, n)) for n in names]
    alike = all(x is y is None or (x is not None and y is not None and torch.equal(x, y)) for x, y in values)
    key = [[(s.row, s.start, s.stop, s.tokens.tolist()) for s in batch.spoken] for batch in (a, b)]
    return alike and key[0] == key[1] and torch.equal(a.documents.diff(dim=1) != 0, b.documents.diff(dim=1) != 0)


def test_rows_are_functions_of_their_place_and_parts_join_again(shelf):
    def made():
        return OmniRows(Documents(shelf), 127, "rows/2")

    whole = made().take([0, 1, 2, 3])
    assert same(made().take([2]), whole.part(2, 3)) and same(made().take([0, 1]), whole.part(0, 2))
    assert same(joined([whole.part(0, 1), whole.part(1, 4)]), whole)
    assert not same(OmniRows(Documents(shelf), 127, "rows/3").take([0]), whole.part(0, 1))
    text = RowBatch(torch.arange(128)[None], torch.tensor([[4] * 60 + [5] * 68]))
    mixed = joined([text, whole.part(1, 2)])
    assert mixed.modality[0].unique().tolist() == [Modality.TEXT] and mixed.learnt[0].unique().tolist() == [Modality.TEXT]
    assert mixed.positions[:, 0].tolist() == [[*range(60), *range(68)]] * 3
    assert len(set(mixed.documents[0].tolist()) & set(mixed.documents[1].tolist())) == 0
    assert same(mixed.part(1, 2), whole.part(1, 2)) and text.part(0, 1).modality is None


def test_media_and_text_mix_by_row(shelf):
    class Text:
        def row_at(self, place):
            return place

        def take(self, rows):
            return torch.full((len(rows), 128), 40), torch.zeros(len(rows), 128, dtype=torch.long)

    mixed = MixedRows({"text": Text(), "media": OmniRows(Documents(shelf), 127, "rows/4")}, {"text": 1, "media": 1})
    batch = mixed.batch(0, 4)
    has_media = [(batch.modality[row] != Modality.TEXT).any().item() for row in range(4)]
    assert sorted(has_media) == [False, False, True, True]


def test_speech_notes_where_it_is_heard(tokenizer):
    script = Script(tokenizer)
    script.user("Hear:", Speech(spans.sound(torch.zeros(20, 4), tokenizer, 8), "red dot"))
    script.assistant("red dot", about=Modality.AUDIO)
    document = script.finish()
    [(start, stop, tokens)] = document.spoken
    assert document.span.modality[start - 1 : stop + 1].tolist() == [0, 3, 3, 3, 0]
    assert tokens.tolist() == tokenizer.encode("red dot")


def test_wordings():
    names = ("cat", "umbrella", "grapes", "a red dot", "glass")
    assert [with_article(n) for n in names] == ["a cat", "an umbrella", "grapes", "a red dot", "a glass"]
    assert all("{a}" in w for ways in (*THERE.values(), WHICH) for w in ways)
    assert all("{a}" in w and "{b}" in w for ways in EITHER.values() for w in ways)
    assert len(set(MATCHES) | set(WHICH_SAID)) == len(MATCHES) + len(WHICH_SAID)
    assert omni_documents.plain("A Red, square.") == "a red square"
    assert name(dataclasses.make_dataclass("I", ["text", "details"])("t", {"object": "o"})) == "o"
