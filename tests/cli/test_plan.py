"""`fourfold plan` as a program and a person meet it."""

import json
import resource
import subprocess
import sys

import pytest

from fourfold.cli.main import main

KEYS = "total_parameters active_parameters engram_parameters experts_per_token kv_bytes_per_token weight_bytes".split()


def test_json_of_one_and_of_several(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "v4", "--json"]) == 0
    one = json.loads(capsys.readouterr().out)
    assert all(key in one for key in KEYS)
    assert set(one["weight_bytes"]) == {"bf16", "fp8", "int8", "int4"}
    assert one["experts_per_token"] == 16
    assert main(["plan", "v3", "nano", "--json"]) == 0
    assert [each["name"] for each in json.loads(capsys.readouterr().out)] == ["v3", "nano"]


def test_side_by_side_with_the_change(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "v3", "v4", "--memory", "64GB"]) == 0
    out = capsys.readouterr().out
    assert "v3 -> v4" in out
    assert "671B" in out
    assert "v4 as int4 in 64 GB" in out


def test_without_a_context_what_the_model_has_is_held(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "v1-7b", "v3", "--memory", "64GB", "--json"]) == 0
    assert [each["placement"]["context"] for each in json.loads(capsys.readouterr().out)] == [4096, 8192]


def test_a_checkpoint_folder(checkpoint, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(checkpoint), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["v5"], "preset 'v5' is not known; choose one of v1-7b,"),
        (["v4", "--memory", "lots"], "--memory: 'lots' is not a size"),
        (["v4", "--memory", "9" * 400], "--memory: '999"),
        (["v4", "--memory", "0.4"], "--memory: must be more than zero"),
        (["v4", "--format", "int3"], "--format: 'int3' is not known"),
        (["v4", "--ram-bandwidth", "fast"], "--ram-bandwidth: 'fast'"),
        (["v4", "v1-7b", "--context", "4097"], "--context: 4097 is more than the 4096 tokens of v1-7b"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert said in captured.err
    assert captured.err.count("\n") == 1


def test_v4_needs_little_memory() -> None:
    """A trillion parameters counted in under 2 GiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    subprocess.run([sys.executable, "-m", "fourfold", "plan", "v4", "--json"], check=True, capture_output=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss < max(before + 1, 2 << 20)
