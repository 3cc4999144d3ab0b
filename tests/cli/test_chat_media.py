"""`fourfold chat` with files: what is shown goes with the next message, what is drawn is saved, shown and looked at again."""

import io
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fourfold
from fourfold.cli.conversation import Conversation
from fourfold.cli.gallery import Gallery, blocks
from fourfold.cli.main import main
from fourfold.engine.canvas import Drawing
from fourfold.engine.generate import Piece
from fourfold.engine.prompts import reread
from fourfold.engine.sampler import Sampling, sample
from fourfold.errors import DataError, MediaError
from fourfold.media.images import read_image
from fourfold.media.spans import patches_of
from fourfold.media.video import read_clip
from fourfold.text.chats import DrawingFinished
from tests.compare import assert_close
from tests.omni import picture


@pytest.fixture
def talk(omni_checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def run(typed: str, *arguments: str, model: str = "tiny-omni") -> tuple[str, str]:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed.encode()), "utf-8"))
        assert main(["chat", model, "--seed", "5", "--max-tokens", "40", "--save", str(tmp_path), *arguments]) == 0
        return capsys.readouterr()

    return run


@pytest.fixture
def drawing_model(omni_checkpoint: Path, monkeypatch: pytest.MonkeyPatch):
    """Answers with `<|draw|>2x3`, then with `<|film|>2x1x2`, and so on; codes are drawn as ever."""
    model = fourfold.load(omni_checkpoint)
    tokenizer = model.tokenizer
    size = {"draw": tokenizer.encode("23"), "film": tokenizer.encode("212")}
    ends = [*tokenizer.encode(" cat"), tokenizer.special("end")]
    script = [
        token for name in ("draw", "film") for token in [*tokenizer.encode("the"), tokenizer.special(name), *size[name], *ends]
    ]
    told = iter(script * 3)

    def said(logits: torch.Tensor, sampling: Sampling, generator: torch.Generator) -> int:
        return next(told) if len(logits) == tokenizer.vocab_size else sample(logits, sampling, generator)

    monkeypatch.setattr("fourfold.engine.chooser.sample", said)
    return model


def test_files_go_with_the_next_message(talk, shown_files: Path) -> None:
    plain, _ = talk("the cat\n")
    shown, err = talk(f"/image {shown_files}/a.png\nthe cat\n")
    assert shown != plain and not err
    assert talk(f"/image '{shown_files}/a.png'\nthe cat\n")[0] == shown
    several = (
        f"/image {shown_files}/a.png\n/audio {shown_files}/tone.wav\n/video {shown_files}/clip.mp4\n/image {shown_files}/b.png\n"
    )
    both, err = talk(several + "the cat\n")
    assert both not in (shown, plain) and not err
    again, _ = talk(several + "the cat\n/reset\nthe cat\n")
    assert again == both + plain  # they went with the first alone


def test_a_file_that_cannot_be_shown_loses_nothing(talk, shown_files: Path) -> None:
    wrong = f"/image {shown_files}/nowhere.png\n/audio {shown_files}/a.png\n/video {shown_files}/words.txt\n"
    out, err = talk(f"/image {shown_files}/a.png\n{wrong}the cat\n")
    assert out == talk(f"/image {shown_files}/a.png\nthe cat\n")[0]
    lines = err.splitlines()
    assert len(lines) == 3 and all(line.startswith("error: ") for line in lines)
    for line, said in zip(lines, ("no such file", "is a picture, not sound", "is not a clip"), strict=True):
        assert said in line


def test_help_tells_of_files_where_they_can_be_shown(talk, checkpoint: Path, shown_files: Path) -> None:
    assert "/image FILE" in talk("/help\n")[1] and "/image FILE" not in talk("/help\n", model="tiny")[1]
    out, err = talk(f"/image {shown_files}/a.png\n", model="tiny")
    assert not out and "a.png: this model reads text only" in err and err.count("\n") == 1
    assert talk("/image\n")[1] == talk("/help\n")[1]
    assert talk("/look\n")[1].startswith("error: /look: there is no drawing")


def test_drawings_are_saved_and_named(talk, drawing_model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("fourfold.cli.chat.open_model", lambda _: drawing_model)
    drawn: list[torch.Tensor] = []
    add = Gallery.add
    monkeypatch.setattr(Gallery, "add", lambda self, pixels: drawn.append(pixels) or add(self, pixels))
    out, err = talk("one\ntwo\nthree\n")
    names = ["picture-0001.png", "clip-0001.gif", "picture-0002.png"]
    assert out == "".join(f"the\n{tmp_path / name}\n cat\n" for name in names) and not err
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    assert torch.equal(read_image(tmp_path / names[0]), drawn[0][0]) and drawn[0].shape == (1, 3, 16, 24)
    assert read_clip(tmp_path / names[1], 8.0).frames.shape == drawn[1].shape == (2, 3, 8, 16)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLORTERM", "truecolor")
    monkeypatch.setenv("TERM", "xterm")
    out, _ = talk("two\n")  # the next in the script: a clip
    first = "".join(f"\033[38;2;{_rgb(drawn[0], 0, x)};48;2;{_rgb(drawn[0], 1, x)}m▀" for x in range(24))
    assert "▀" in out and blocks(drawn[0], 80).startswith(first + "\033[0m\n")
    assert str(tmp_path / "clip-0002.gif") in out


def _rgb(pixels: torch.Tensor, row: int, column: int) -> str:
    return ";".join(map(str, pixels[0, :, row, column].tolist()))


def test_a_drawing_stays_in_the_conversation(drawing_model) -> None:
    """As its codes, at its place among the words, so that the next turn goes on from the same cache."""
    talk = Conversation(drawing_model, Sampling(0, max_tokens=40), None, False)
    events = [event for step in talk.ask("one") for event in step]
    finished = next(event for event in events if isinstance(event, DrawingFinished))
    content = talk.messages[-1]["content"]
    assert [part["type"] for part in content] == ["text", "draw", "text"]
    assert content[0]["text"] == "the" and content[2]["text"] == " cat" and content[1]["codes"] is finished.codes
    seen = list(talk.sequence.seen)
    list(talk.ask("two"))
    assert talk.sequence.seen[: len(seen)] == seen and talk.messages[-1]["content"][1]["type"] == "film"
    prompt, _ = talk.chat.span(drawing_model.tokenizer, [*talk.messages, {"role": "user", "content": "x"}])
    rest = talk.sequence.rewind(prompt)
    assert len(rest) < 8
    with torch.inference_mode():
        plain = drawing_model(drawing_model.batch([prompt])).logits[-1]
    assert_close(talk.sequence.feed(rest), plain, "a third turn")


def test_what_was_drawn_can_be_looked_at(drawing_model) -> None:
    talk = Conversation(drawing_model, Sampling(0, max_tokens=40), None, False)
    with pytest.raises(DataError, match="no drawing"):
        talk.look()
    for kind, modality in (("image", 1), ("video", 2)):
        list(talk.ask("x"))
        drawn = talk.drawn
        assert talk.look() == len(reread(drawing_model, drawn))
        assert talk.attached[0]["type"] == kind and modality in talk.attached[0]["span"].modality
        list(talk.ask("what is it?"))
        asked = talk.messages[-2]["content"]
        assert [part["type"] for part in asked] == [kind, "text"] and not talk.attached
        assert torch.equal(reread(drawing_model, drawn).pixels, asked[0]["span"].pixels)
        talk.reset()
        assert talk.drawn is None
        if kind == "image":
            list(talk.ask("x"))  # a picture; a clip is next in the script


def test_a_long_clip_is_looked_at_in_steps(drawing_model) -> None:
    frames = torch.stack([picture(seed, 16, 16) for seed in range(9)])
    span = reread(drawing_model, frames)
    times = span.positions[0][span.modality == 2].unique()
    assert (times - times[0]).tolist() == [0, 9]  # frames 0, 3 and 6, two at a time: at 8 a second, in ticks of 80 ms


def test_a_drawn_clip_is_looked_at_at_the_rate_of_clips(drawing_model) -> None:
    """What is drawn has eight frames a second; a model that reads four is shown every other one."""
    slow = drawing_model.config.but(media_in=drawing_model.config.media_in.but(clip_rate=4.0))
    frames = torch.stack([picture(seed, 16, 16) for seed in range(4)])
    span = reread(SimpleNamespace(config=slow, tokenizer=drawing_model.tokenizer), frames)
    both = torch.cat([patches_of(frames[[0]], 8), patches_of(frames[[2]], 8)], -1)
    assert torch.equal(span.pixels, both.flatten(0, 2))


def test_half_a_drawing_is_not_remembered(drawing_model) -> None:
    talk = Conversation(drawing_model, Sampling(0, max_tokens=40), None, False)
    steps = talk.ask("one")
    for _ in range(7):
        next(steps)
    steps.close()
    assert talk.messages[-1] == {"role": "assistant", "content": "the"} and talk.drawn is None


def test_attached_files_wait_for_a_message_that_fits(omni_checkpoint: Path, shown_files: Path) -> None:
    talk = Conversation(fourfold.load(omni_checkpoint), Sampling(0, max_tokens=2), None, False)
    talk.attach("image", shown_files / "a.png")
    with pytest.raises(Exception, match="leave no room"):
        list(talk.ask("x" * 400))
    with pytest.raises(MediaError):
        talk.attach("image", shown_files / "words.txt")
    assert len(talk.attached) == 1 and not talk.messages
    list(talk.ask("x"))
    assert not talk.attached and [part["type"] for part in talk.messages[0]["content"]] == ["image", "text"]


def test_a_model_without_its_codec_draws_nothing_in_chat(omni_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, talk) -> None:
    model, asked = fourfold.load(omni_checkpoint), []
    object.__setattr__(model, "codec", None)
    monkeypatch.setattr("fourfold.cli.chat.open_model", lambda _: model)

    def seen(*arguments: object, drawing: Drawing):
        asked.append(drawing.begin)
        yield Piece("", (), "stop")

    monkeypatch.setattr("fourfold.engine.generate.generate", seen)
    talk("one\n")
    assert asked == [False]


def test_blocks_fit_the_terminal() -> None:
    clip = torch.stack([picture(seed, 6, 8) for seed in range(5)])
    for columns, frames in ((80, 5), (35, 4), (17, 2), (8, 1)):
        lines = blocks(clip, columns).split("\n")
        assert len(lines) == 3 and all(line.count("▀") == 8 * frames for line in lines)
        assert all(len(re.sub(r"\033\[[\d;]*m", "", line)) <= columns for line in lines)
    assert max(len(re.sub(r"\033\[[\d;]*m", "", line)) for line in blocks(picture(1, 60, 100)[None], 40).split("\n")) <= 40
