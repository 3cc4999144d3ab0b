"""`fourfold generate`: the stream, the JSON object, and standard input."""

import io
import json
from pathlib import Path

import pytest

import fourfold
from fourfold.cli.main import main
from fourfold.engine.generate import generate
from fourfold.engine.sampler import Sampling
from fourfold.text.chat import render

SETTINGS = ["--max-tokens", "12", "--seed", "3", "--top-k", "50"]


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["generate", "tiny", *SETTINGS, *arguments]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def test_stream_and_json_say_the_same(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stream = say(capsys, "--prompt", "the cat")
    result = json.loads(say(capsys, "--prompt", "the cat", "--json"))
    assert stream == result["text"] + "\n"
    assert result["tokens"] == 12 and result["finish_reason"] == "length" and result["tokens_per_second"] > 0
    assert say(capsys, "--prompt", "the cat") == stream != say(capsys, "--prompt", "the cat", "--seed", "4")


@pytest.mark.parametrize("chat", [False, True])
def test_the_prompt_is_plain_text_or_a_users_message(checkpoint: Path, capsys: pytest.CaptureFixture[str], chat: bool) -> None:
    model = fourfold.load("tiny")
    tokenizer = model.tokenizer
    plain = [tokenizer.special("bos"), *tokenizer.encode("<|user|>")]
    ids = render([{"role": "user", "content": "<|user|>"}], tokenizer) if chat else plain
    sampling = Sampling(0.7, 0.95, 50, seed=3, max_tokens=12)
    expected = "".join(piece.text for piece in generate(model, ids, sampling, tokenizer))
    assert say(capsys, "--prompt", "<|user|>", *(["--chat"] if chat else [])) == expected + "\n"


def test_stop_is_left_out(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    full = say(capsys, "--prompt", "the cat").rstrip("\n")
    stop = full[4:6]
    result = json.loads(say(capsys, "--prompt", "the cat", "--stop", "never said", "--stop", stop, "--json"))
    assert result["text"] == full[: full.index(stop)] and result["finish_reason"] == "stop"


def test_standard_input(checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = say(capsys, "--prompt", "Grüße 漢")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("Grüße 漢".encode())))
    assert say(capsys, "--prompt", "-") == expected
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert main(["generate", "tiny", "--prompt", "-"]) == 2
    assert capsys.readouterr().err == "error: --prompt -: standard input is not UTF-8 text (byte 2); convert it first\n"


def test_a_checkpoint_without_tokenizer_is_refused(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).symlink_to(checkpoint / name)
    assert fourfold.load(tmp_path).tokenizer is None
    assert main(["generate", str(tmp_path), "--prompt", "x"]) == 2
    assert capsys.readouterr().err.endswith("tokenizer.json: missing; save the checkpoint with its tokenizer\n")
