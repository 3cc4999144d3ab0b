"""Content in parts: words encoded as ever, media as spans in their places, and what is no content named in one line."""

import re

import pytest
import torch

from fourfold.errors import DataError
from fourfold.media import spans
from fourfold.media.spans import Span
from fourfold.text.chats import FORMATS, Content, DrawingBegun, DrawingFinished, Message, Reasoning, collect
from fourfold.text.chats.own import Own
from fourfold.text.tokenizer import Tokenizer
from tests.omni import a_clip, a_picture, a_sound, controls

PICTURE = torch.arange(6).view(2, 3)
FILM = torch.arange(4).view(2, 1, 2)
TALK = [
    {"role": "system", "content": "the mat"},
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": "sat", "reasoning_content": "hm"},
    {"role": "user", "content": "Grüße 🙂"},
]


def in_parts(messages: list[dict]) -> list[dict]:
    """Every text cut into parts of a few letters."""
    cut = [[m["content"][i : i + 3] for i in range(0, len(m["content"]), 3)] for m in messages]
    return [m | {"content": [{"type": "text", "text": text} for text in texts]} for m, texts in zip(messages, cut, strict=True)]


@pytest.mark.parametrize("name", FORMATS)
def test_texts_in_parts_are_one_text(name: str) -> None:
    chat = FORMATS[name]()
    talk = TALK if "system" in chat.roles else TALK[1:]
    assert chat.text(in_parts(talk)) == chat.text(talk)


def test_a_span_of_text_has_the_same_ids(tokenizer: Tokenizer) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    for messages in (TALK, in_parts(TALK)):
        for options in ({}, {"thinking": True}, {"tools": tools}, {"add_generation_prompt": False}):
            ids, opened = Own().prompt(tokenizer, TALK, **options)
            span, also = Own().span(tokenizer, messages, **options)
            assert span.tokens.tolist() == ids and opened == also and not span.modality.any()
            assert torch.equal(span.positions, torch.arange(len(ids)).expand(3, -1))


def test_media_stand_in_their_places(tokenizer: Tokenizer) -> None:
    shown = {"image": a_picture(tokenizer), "video": a_clip(tokenizer), "audio": a_sound(tokenizer)}
    read = []

    def show(kind: str, source: object) -> Span:
        read.append((kind, source))
        return shown[kind]

    parts = [{"type": "text", "text": "a "}, {"type": "image", "source": "x.png"}, {"type": "audio", "source": b"RIFF"}]
    drawn = [{"type": "text", "text": "see"}, {"type": "draw", "codes": PICTURE.tolist()}, {"type": "film", "codes": FILM}]
    messages = [
        {"role": "user", "content": [*parts, {"type": "text", "text": "b<|user|>"}]},
        {"role": "assistant", "content": drawn},
        {"role": "user", "content": [{"type": "video", "span": shown["video"]}]},
    ]
    span, _ = Own().span(tokenizer, messages, show)
    assert read == [("image", "x.png"), ("audio", b"RIFF")]
    words = {text: spans.text(tokenizer.encode(text)) for text in ("a ", "b<|user|>", "see")}
    drawings = [spans.drawing(PICTURE, tokenizer), spans.film(FILM, tokenizer)]
    end = controls(tokenizer, "end")
    expected = [controls(tokenizer, "bos", "user"), words["a "], shown["image"], shown["audio"], words["b<|user|>"], end]
    expected += [controls(tokenizer, "assistant"), words["see"], *drawings, end]
    expected += [controls(tokenizer, "user"), shown["video"], end, controls(tokenizer, "assistant")]
    whole = spans.join(expected)
    for name in ("tokens", "modality", "positions", "pixels", "mel"):
        assert torch.equal(getattr(span, name), getattr(whole, name)), name
    with pytest.raises(DataError, match=r"^messages: hold image, which has no token ids; ask for a span$"):
        Own().prompt(tokenizer, messages)


@pytest.mark.parametrize(
    ("role", "part", "said"),
    [
        ("user", 7, "content[0].type: must be one of text, image, video, audio, draw, film"),
        ("user", {"type": "image_url"}, "content[0].type: must be one of"),
        ("user", {"type": "text"}, "content[0].text: must be text"),
        ("user", {"type": "image"}, "content[0].source: is missing"),
        ("user", {"type": "draw", "codes": [[1]]}, "content[0].type: draw is not for user messages"),
        ("assistant", {"type": "image", "source": "x"}, "content[0].type: image is not for assistant messages"),
        ("assistant", {"type": "draw"}, "content[0].codes: must be whole numbers [rows, columns]"),
        ("assistant", {"type": "draw", "codes": [1, 2]}, "content[0].codes: must be whole numbers [rows, columns]"),
        ("assistant", {"type": "draw", "codes": [[1], [2, 3]]}, "content[0].codes: must be"),
        ("assistant", {"type": "film", "codes": [[[0.5]]]}, "content[0].codes: must be whole numbers [frames, rows, columns]"),
    ],
)
def test_what_is_no_part_is_named(tokenizer: Tokenizer, role: str, part: object, said: str) -> None:
    with pytest.raises(DataError, match=rf"^messages\[0\]\.{re.escape(said)}[^\n]*$"):
        Own().span(tokenizer, [{"role": role, "content": [part]}])


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "fourfold"])
def test_published_formats_have_words_for_text_only(name: str) -> None:
    content = [{"type": "text", "text": "x"}, {"type": "image", "source": "a.png"}]
    said = rf"^messages\[0\]\.content: chat format {re.escape(name)} has no words for image; [^\n]*nano-omni$"
    with pytest.raises(DataError, match=said):
        FORMATS[name]().render([{"role": "user", "content": content}])


def test_a_reply_with_drawings_is_a_message(tokenizer: Tokenizer) -> None:
    drawn = [DrawingFinished(PICTURE), DrawingFinished(FILM)]
    events = [Reasoning("hm"), Content("\n\nsee"), DrawingBegun((2, 3)), drawn[0], Content("and"), drawn[1]]
    message = collect(events)
    assert message.content == "\n\nseeand" and message.answer().content == "seeand"
    parts = message.answer().to_dict()["content"]
    assert [part.get("text", part["type"]) for part in parts] == ["see", "draw", "and", "film", ""]
    span, _ = Own().span(tokenizer, [{"role": "assistant", "content": parts}], add_generation_prompt=False)
    assert int((span.modality > 3).sum()) == PICTURE.numel() + FILM.numel()
    assert Message("x", "hm").answer() == Message("x") and collect([Content("x")]).to_dict()["content"] == "x"
    early = collect([Reasoning("hm"), Content("\n"), drawn[0], Content("\nx")]).answer()
    assert early.content == "x" and early.drawings[0][0] == 0
