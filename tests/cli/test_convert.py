"""`fourfold convert`, and `fourfold plan` of what it reads and writes, as a program and a person meet them."""

import json
from pathlib import Path

import pytest
import torch

import fourfold
from fourfold.cli.main import main
from fourfold.formats import export
from fourfold.formats.shards import stored_tensors
from tests.formats.small import model, quantised_twins


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return export(model("deepseek_v3"), tmp_path / "theirs")


def test_there_and_back(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert main(["convert", str(source), str(ours), "--dtype", "bfloat16", "--shard-size", "30kB", "--json"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert done["folder"] == str(ours) and done["shards"] == len(list(ours.glob("*.safetensors"))) > 1
    assert done["taken_over"] == 0
    assert done["bytes"] == sum(entry.bytes for entry in stored_tensors(ours).values())
    assert main(["convert", str(ours), str(back), "--to", "hf", "--dtype", "float32"]) == 0
    out = capsys.readouterr().out
    assert out.startswith(str(back)) and "in 1 file" in out and out.count("\n") == 1
    first, again = fourfold.load(ours).state_dict(), fourfold.load(back).state_dict()
    assert all(torch.equal(first[name].float(), again[name].float()) for name in first)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["SRC"], "Missing argument 'DST'"),
        (["nowhere", "DST"], "nowhere: no such model"),
        (["SRC", "SRC"], "exists; name a new folder"),
        (["SRC", "DST", "--to", "onnx"], "to: 'onnx' is not a format to convert to; choose fourfold or hf"),
        (["SRC", "DST", "--dtype", "int3"], "dtype: int3 is not a weight format"),
        (["SRC", "DST", "--shard-size", "big"], "--shard-size: 'big' is not a size"),
    ],
)
def test_bad_input_is_one_line(
    source: Path, tmp_path: Path, arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    places = {"SRC": str(source), "DST": str(tmp_path / "new")}
    assert main(["convert", *(places.get(argument, argument) for argument in arguments)]) == 2
    captured = capsys.readouterr()
    assert not captured.out and said in captured.err and captured.err.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_plan_of_a_published_folder(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters and bytes by part, from the headers; what a preset's plan says comes too."""
    assert main(["plan", str(source), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    stored = plan["stored"]
    biases = 3 * 8  # of routers, which are no parameters of a plan
    assert stored["parameters"] == plan["total_parameters"] + plan["mtp_parameters"] + biases
    assert stored["formats"] == {"float32": stored["bytes"]} and stored["files"] == 1
    assert stored["bytes"] == sum(part["bytes"] for part in stored["parts"].values())
    assert stored["parts"]["embedding"] == {"parameters": 61 * 22, "bytes": 4 * 61 * 22}
    assert stored["parts"]["copies"]["parameters"] == 2 * 61 * 22
    assert stored["parts"]["routed experts"]["parameters"] == plan["parts"]["routed experts"]


def test_plan_of_a_quantised_folder_and_of_a_config_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = export(model("llama"), tmp_path / "plain")
    quantised_twins(plain, tmp_path / "coded", tmp_path / "twin", (128, 128), False, "weight_scale_inv")
    assert main(["plan", str(tmp_path / "coded"), str(tmp_path / "twin"), "--json"]) == 0
    coded, twin = (each["stored"] for each in json.loads(capsys.readouterr().out))
    assert coded["parameters"] == twin["parameters"] and coded["files"] == 2 and twin["files"] == 1
    matrices = sum(part["parameters"] for name, part in twin["parts"].items() if name in ("attention", "dense feed-forward"))
    assert coded["formats"]["fp8"] == matrices + 3 * 7 * 4  # a scale of four bytes for each of seven matrices a layer
    assert set(twin["formats"]) == {"bfloat16"}
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "config.json").write_text((plain / "config.json").read_text())
    assert main(["plan", str(tmp_path / "bare")]) == 0
    assert "as stored" not in capsys.readouterr().out
    assert main(["plan", str(plain)]) == 0
    assert f"{plain} as stored: " in capsys.readouterr().out


def test_plan_of_our_own_folder(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(checkpoint), "--json"]) == 0
    stored = json.loads(capsys.readouterr().out)["stored"]
    assert stored["bytes"] == sum(entry.bytes for entry in stored_tensors(checkpoint).values())
    assert stored["parts"]["token_classes"]["parameters"] == fourfold.load(checkpoint).config.vocab_size
