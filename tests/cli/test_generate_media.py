"""`fourfold generate` with files to read, and drawings to write."""

import json
from pathlib import Path

import pytest
import torch

import fourfold
from fourfold.cli.main import main
from fourfold.engine.batches import draw
from fourfold.engine.canvas import Drawing, pixels_of
from fourfold.engine.generate import generate
from fourfold.engine.prompts import prompt_of
from fourfold.engine.sampler import Sampling
from fourfold.formats.ours import save
from fourfold.media.codec import Codec, CodecConfig
from fourfold.media.images import read_image
from fourfold.media.video import read_clip
from fourfold.text.chats import choose, collect
from fourfold.text.tokenizer import Tokenizer
from tests.omni import make_omni

Output = pytest.CaptureFixture[str]


def run(capsys: Output, *arguments: str | Path) -> tuple[str, str]:
    assert main(["generate", "tiny-omni", "--seed", "3", *map(str, arguments)]) == 0
    return capsys.readouterr()


def refused(capsys: Output, *arguments: str | Path) -> str:
    assert main(["generate", *map(str, arguments)]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1
    return err


def test_files_stand_before_the_question_in_their_order(omni_checkpoint: Path, shown_files: Path, capsys: Output) -> None:
    model = fourfold.load("tiny-omni")
    given = [("audio", "tone.wav"), ("image", "a.png"), ("video", "clip.mp4"), ("image", "b.png")]
    parts = [{"type": kind, "source": shown_files / name} for kind, name in given]
    content = [*parts, {"type": "text", "text": "the cat?"}]
    prompt, _ = prompt_of(model, [{"role": "user", "content": content}])
    assert {1, 2, 3} <= set(prompt.modality.tolist())
    sampling = Sampling(0.7, 0.95, seed=3, max_tokens=9)
    pieces = generate(model, prompt, sampling, model.tokenizer, drawing=Drawing(begin=False))
    events = [event for _, said in choose(model.tokenizer).read(pieces, model.tokenizer, False) for event in said]
    expected = collect(events).content
    options = [argument for kind, name in given for argument in (f"--{kind}", shown_files / name)]
    asked = [*options, "--prompt", "the cat?", "--max-tokens", "9"]
    assert run(capsys, *asked) == (expected + "\n", "")
    result = json.loads(run(capsys, *asked, "--json")[0])
    assert result["text"] == expected and result["prompt_tokens"] == len(prompt)
    assert run(capsys, *asked[2:])[0] != expected + "\n"  # without the sound
    assert run(capsys, *asked[2:4], *asked[:2], *asked[4:])[0] != expected + "\n"  # a picture before the sound


@pytest.mark.parametrize("guidance", ["1", "2.5"])
def test_a_caption_is_drawn(omni_checkpoint: Path, tmp_path: Path, capsys: Output, guidance: str) -> None:
    model = fourfold.load("tiny-omni")
    prompt, _ = prompt_of(model, [{"role": "user", "content": "Draw this: the cat"}])
    for grid in ((3, 4), (2, 5)):
        path = tmp_path / f"{grid[0]}.png"
        size = ["--grid", "2x5"] if grid == (2, 5) else []  # by default that of the config
        assert run(capsys, "--draw", path, "--prompt", "the cat", "--guidance", guidance, *size) == (f"{path}\n", "")
        codes = draw(model, [prompt], grid, Sampling(1.0, seed=3), float(guidance))[0]
        assert torch.equal(read_image(path), pixels_of(model, codes)[0])


def test_a_clip_is_drawn(omni_checkpoint: Path, tmp_path: Path, capsys: Output) -> None:
    for name in ("a.mp4", "a.gif", "a.webp"):
        result = json.loads(run(capsys, "--film", tmp_path / name, "--prompt", "the dog", "--json")[0])
        assert result["files"] == [str(tmp_path / name)] and result["grid"] == [3, 2, 2] and result["tokens_per_second"] > 0
        assert tuple(read_clip(tmp_path / name, 8.0).frames.shape) == (3, 3, 16, 16)
    model = fourfold.load("tiny-omni")
    prompt, _ = prompt_of(model, [{"role": "user", "content": "Film this: the dog"}])
    codes = draw(model, [prompt], (3, 2, 2), Sampling(1.0, seed=3))[0]
    assert torch.equal(read_clip(tmp_path / "a.webp", 8.0).frames, pixels_of(model, codes))


def test_what_is_heard_can_be_drawn_and_nothing_too(
    omni_checkpoint: Path, shown_files: Path, tmp_path: Path, capsys: Output
) -> None:
    files = {name: tmp_path / f"{name}.png" for name in ("nothing", "tone", "cold", "hot")}
    run(capsys, "--draw", files["nothing"], "--prompt", "")
    run(capsys, "--draw", files["tone"], "--audio", shown_files / "tone.wav", "--prompt", "")
    for name, temperature in (("cold", "0"), ("hot", "9")):
        run(capsys, "--draw", files[name], "--prompt", "the cat", "--temperature", temperature, "--top-k", "9")
    drawn = [read_image(path) for path in files.values()]
    assert not any(torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_wrong_options_are_one_line(
    omni_checkpoint: Path, checkpoint: Path, shown_files: Path, tmp_path: Path, capsys: Output
) -> None:
    says, png = ["--prompt", "x"], tmp_path / "a.png"
    assert "does not end in .png, .webp" in refused(capsys, "tiny-omni", "--draw", tmp_path / "a.gif", *says)
    assert "does not end in .gif, .webp, .mp4" in refused(capsys, "tiny-omni", "--film", png, *says)
    assert "does not go with --draw" in refused(capsys, "tiny-omni", "--draw", png, "--film", tmp_path / "a.gif", *says)
    assert "with --draw give rows x columns" in refused(capsys, "tiny-omni", "--draw", png, "--grid", "2x2x2", *says)
    assert "give --draw or --film" in refused(capsys, "tiny-omni", "--grid", "2x2", *says)
    assert "guidance: is -1.0" in refused(capsys, "tiny-omni", "--draw", png, "--guidance", "-1", *says)
    assert "takes 257 more tokens" in refused(capsys, "tiny-omni", "--draw", png, "--grid", "16x16", *says)
    assert "words.txt: is not a picture" in refused(capsys, "tiny-omni", "--image", shown_files / "words.txt", *says)
    assert "b.jpg: no such file" in refused(capsys, "tiny-omni", "--image", shown_files / "b.jpg", *says)
    assert "give it as audio" in refused(capsys, "tiny-omni", "--video", shown_files / "tone.wav", *says)
    assert not list(tmp_path.iterdir())


def test_a_model_of_text_says_so(checkpoint: Path, shown_files: Path, tmp_path: Path, capsys: Output) -> None:
    for kind, name in (("image", "a.png"), ("video", "clip.mp4"), ("audio", "tone.wav")):
        said = refused(capsys, "tiny", f"--{kind}", shown_files / name, "--prompt", "x")
        assert f"{name}: this model reads text only" in said and "nano-omni" in said
    for option, name in (("--draw", "a.png"), ("--film", "a.gif")):
        said = refused(capsys, "tiny", option, tmp_path / name, "--prompt", "x")
        assert f"{option}: this model draws nothing" in said and "nano-omni" in said


def test_a_checkpoint_without_its_codec_says_so(omni_checkpoint: Path, tmp_path: Path, capsys: Output) -> None:
    folder = tmp_path / "bare"
    folder.mkdir()
    for file in omni_checkpoint.iterdir():
        if file.is_file():
            (folder / file.name).symlink_to(file)
    assert fourfold.load(folder).codec is None
    said = refused(capsys, folder, "--draw", tmp_path / "a.png", "--prompt", "x")
    assert "has no folder codec" in said
    assert main(["generate", str(folder), "--prompt", "x", "--max-tokens", "3"]) == 0


def test_a_file_that_cannot_be_written_is_one_line(omni_checkpoint: Path, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "file").write_text("x")
    assert "a.png: cannot be written" in refused(capsys, "tiny-omni", "--draw", tmp_path / "file" / "a.png", "--prompt", "x")


def test_a_converted_checkpoint_keeps_its_codec(omni_checkpoint: Path, tmp_path: Path, capsys: Output) -> None:
    assert main(["convert", "tiny-omni", str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    theirs, ours = (fourfold.load(folder).codec.state_dict() for folder in (omni_checkpoint, tmp_path / "half"))
    assert theirs.keys() == ours.keys() and all(torch.equal(theirs[name], ours[name]) for name in theirs)


def test_a_model_is_saved_with_its_codec(omni_checkpoint: Path, tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = fourfold.load(save(fourfold.load(omni_checkpoint), tmp_path / "again"))
    codes = torch.arange(12).view(3, 4)
    assert torch.equal(pixels_of(again, codes), pixels_of(make_omni(tokenizer), codes))


def test_a_codec_of_other_codes_is_refused(omni_checkpoint: Path, tmp_path: Path, capsys: Output) -> None:
    for file in omni_checkpoint.iterdir():
        if file.is_file():
            (tmp_path / file.name).symlink_to(file)
    Codec(CodecConfig(levels=(5, 5), widths=(8,), encoder_blocks=1, decoder_blocks=1)).init_weights(1).save(tmp_path / "codec")
    assert "codec: has 25 codes, the model draws 60; " in refused(capsys, tmp_path, "--prompt", "x")
