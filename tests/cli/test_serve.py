"""`fourfold serve` as it is called."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from fourfold.cli.main import main


def test_a_model_is_served_until_it_is_told_to_stop(checkpoint: Path, tmp_path: Path) -> None:
    """What it prints first is where it is, and a curl line that works."""
    command = [
        sys.executable,
        "-m",
        "fourfold",
        "serve",
        f"small={checkpoint}",
        "--port",
        "0",
        "--ledger",
        str(tmp_path / "ledger.db"),
    ]
    environment = os.environ | {"FOURFOLD_HOME": str(tmp_path), "FOURFOLD_NATIVE": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            lines = [process.stdout.readline().strip() for _ in range(6)]
            assert lines[0] == "serving small, small-chat, small-reasoner", process.stderr.read() if not lines[0] else lines
            url = lines[2].split()[-1]
            assert lines[4].startswith(f"curl {url}/chat/completions")
            body = lines[5].removeprefix("-d '").removesuffix("'")
            headers = {"content-type": "application/json"}
            answer = httpx.post(f"{url}/chat/completions", content=body, headers=headers, timeout=60, trust_env=False)
            assert answer.status_code == 200 and answer.json()["model"] == "small", answer.text
            process.send_signal(signal.SIGINT)
            assert process.wait(30) in (0, 130)
        finally:
            process.kill()
    assert main(["serve", "usage", "--by", "model", "--csv", "--ledger", str(tmp_path / "ledger.db")]) == 0


def test_keys_are_made_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = ["--ledger", str(tmp_path / "ledger.db")]
    assert main(["serve", "keys", "add", "ada", *url]) == 0
    assert capsys.readouterr().out.startswith("ff-")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tiny", "--host", "0.0.0.0"], "host: 0.0.0.0 lets other machines in"),
        (["no-such-model"], "no-such-model"),
        (["--port", "99999"], "port: "),
        (["tiny", "a=tiny", "tiny"], "tiny: two models have this name"),
    ],
)
def test_what_cannot_be_served_is_one_line(
    arguments: list[str], says: str, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", *arguments, "--ledger", str(tmp_path / "ledger.db")]) == 2
    error = capsys.readouterr().err
    assert says in error and error.count("\n") == 1


def test_a_port_that_is_taken_is_named(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert main(["serve", "tiny", "--port", str(port), "--ledger", str(tmp_path / "ledger.db")]) == 2
    assert f"cannot listen at 127.0.0.1:{port}" in capsys.readouterr().err
