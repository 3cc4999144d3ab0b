"""The command: help for every verb, one line for every mistake, and ends that scripts can tell apart."""

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fourfold
from fourfold.cli.main import main

ROOT = Path(__file__).parents[2]
VERBS = ["plan", "train", "chat", "generate", "eval", "data"]


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([verb, "--help"]) == 0
    out, err = capsys.readouterr()
    assert f"fourfold {verb}" in out and not err


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_help_lists_the_verbs(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)


def test_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fourfold {fourfold.__version__}\n"
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == fourfold.__version__


def test_help_does_not_wait_for_torch() -> None:
    ask = "import sys; from fourfold.cli.main import main; main(['generate', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", ask], cwd=ROOT, capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("nix", "No such command 'nix'"),
        ("generate --nix", "No such option"),
        ("generate", "Missing option '--prompt'"),
        ("generate tiny --prompt x --max-tokens many", "max-tokens"),
        ("generate tiny --prompt x --max-tokens 0", "max_tokens: is 0"),
        ("generate tiny --prompt x --temperature -1", "temperature: is -1.0"),
        ("generate tiny --prompt x --top-p 2", "top_p: is 2.0"),
        ("generate tiny --prompt x --top-k -2", "top_k: is -2"),
        ("generate tiny --prompt x --seed -1", "seed: is -1"),
        ("generate tiny --prompt x --stop=", "stop: holds"),
        ("generate nix --prompt x", "nix: no such model"),
        ("generate ./tests --prompt x", "tests/config.json: missing"),
        ("generate tests --prompt x", "tests: no such model"),
        (f"generate tiny --prompt {'the' * 200}", "leave no room in the context of 96"),
        ("chat nix", "nix: no such model"),
        ("chat --temperature nan", "temperature: is nan"),
        ("train nix", "nix"),
        ("plan nix", "nix"),
    ],
)
def test_mistakes_are_one_line(line: str, said: str, checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(line.split(" ")) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("error: ") and err.count("\n") == 1 and said in err, err


def test_being_interrupted_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fourfold.cli.generate.open_model", interrupt)
    assert main(["generate", "tiny", "--prompt", "x"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_leaves_early_is_no_error(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "fourfold", "generate", str(checkpoint), "--prompt", "the", "--seed", "1"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        running.stdout.read(1)
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait(60) == 0
