"""`fourfold chat`: turns through a pipe and on a terminal, and a cache that is used from turn to turn."""

import io
import os
import pty
import select
import sys
import time
from pathlib import Path

import pytest

import fourfold
from fourfold.cli.conversation import Conversation
from fourfold.cli.main import main
from fourfold.engine.generate import Piece
from fourfold.engine.sampler import Sampling
from fourfold.text.chats import collect

ROOT = Path(__file__).parents[2]


@pytest.fixture
def talk(checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def run(typed: str | bytes, *arguments: str) -> tuple[str, str]:
        typed = typed.encode() if isinstance(typed, str) else typed
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(typed), "utf-8"))
        assert main(["chat", "tiny", "--seed", "5", "--max-tokens", "6", *arguments]) == 0
        return capsys.readouterr()

    return run


def test_every_line_of_a_pipe_is_answered(talk) -> None:
    first, err = talk("hello\n")
    assert first.endswith("\n") and not err
    both, _ = talk("hello\n\n   \nyou\n")  # empty lines are none
    assert both.startswith(first) and len(both) > len(first)
    assert talk("hello\n\n   \nyou\n")[0] == both  # the same seed
    assert talk("hello\n/exit\nyou\n")[0] == first
    assert talk("hello")[0] == first and talk("") == ("", "")


def test_reset_starts_over(talk) -> None:
    first, _ = talk("hello\n")
    assert talk("hello\n/reset\nhello\n")[0] == first * 2


def test_help_and_unknown_commands_explain(talk) -> None:
    out, err = talk("/help\n/nix\n")
    assert not out and err.count("/reset starts over") == 2


def test_a_path_or_a_question_is_a_message(talk) -> None:
    for line in ("/usr/bin", "/reset is what?", "/etc /exit"):
        out, err = talk(line + "\n")
        assert out.strip() and not err
    assert talk("/\n")[1].startswith("/reset starts over")


def test_system_and_thinking_change_the_answer(talk) -> None:
    plain, system, thinking = talk("hello\n"), talk("hello\n", "--system", "the dog"), talk("hello\n", "--thinking")
    assert len({plain, system, thinking}) == 3 and thinking[1] and not plain[1]  # thoughts go to standard error


def test_what_is_not_utf8_is_answered_too(talk) -> None:
    assert talk(b"\xff\xfe\n")[0]


def test_a_full_context_is_said_and_can_be_reset(talk) -> None:
    first, _ = talk("hello\n")
    out, err = talk("hello\n" + "x" * 200 + "\n/reset\nhello\n")
    assert out == first * 2
    assert err.startswith("error: prompt: ") and "context of 96" in err and err.count("\n") == 1


def test_a_turn_computes_only_what_is_new(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fourfold.load(checkpoint)
    conversation = Conversation(model, Sampling(0, max_tokens=4), "the cat sat on the mat", False)
    fed: list[int] = []
    trunk = model.trunk
    monkeypatch.setattr(model, "trunk", lambda batch, **more: fed.append(len(batch.tokens)) or trunk(batch, **more))
    list(conversation.ask("the dog"))
    seen = len(conversation.sequence)
    assert sum(fed) == seen
    fed.clear()
    list(conversation.ask("ran"))
    assert fed[0] < seen / 2


def test_an_answer_that_is_stopped_stays_in_the_conversation(checkpoint: Path) -> None:
    model = fourfold.load(checkpoint)
    conversation = Conversation(model, Sampling(0, max_tokens=20), None, False)
    steps = conversation.ask("the dog")
    said = collect(next(steps) + next(steps)).content
    steps.close()
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    assert conversation.messages[1]["content"].startswith(said)
    list(conversation.ask("ran"))
    assert len(conversation.messages) == 4


def test_on_a_terminal(checkpoint: Path) -> None:
    """A prompt, an answer, and Ctrl-C at the prompt, seen through a pseudo-terminal."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(ROOT)
        os.environ["TERM"] = "dumb"  # no escape sequences around the prompt
        os.execv(sys.executable, [sys.executable, "-m", "fourfold", "chat", str(checkpoint), "--seed", "1", "--max-tokens", "5"])
    seen = read_until(terminal, b"> ")
    assert b"/reset starts over" in seen
    os.write(terminal, b"hello\r")
    seen = read_until(terminal, b"\n> ")
    assert len(seen.replace(b"hello", b"").strip()) > 2
    time.sleep(0.5)  # between printing the prompt and waiting for a key, readline misses signals
    os.write(terminal, b"\x03")
    seen = read_until(terminal, b"interrupted")
    assert b"Traceback" not in seen
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130


def read_until(terminal: int, mark: bytes, seconds: float = 120) -> bytes:
    seen, deadline = b"", time.monotonic() + seconds
    while mark not in seen:
        assert select.select([terminal], [], [], deadline - time.monotonic())[0], seen
        seen += os.read(terminal, 4096)
    return seen


def test_ctrl_c_ends_the_answer_and_not_the_conversation(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = iter(["the dog", "ran"])

    def interrupted_once(model, prompt, sampling, tokenizer, sequence, drawing):
        yield Piece("so far", (50,))
        if len(prompt) < 12:
            raise KeyboardInterrupt
        yield Piece(" and done", (51,), "stop")

    def typed(_: str) -> str:
        if (line := next(turns, None)) is None:
            raise EOFError
        return line

    monkeypatch.setattr("fourfold.engine.generate.generate", interrupted_once)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("builtins.input", typed)
    assert main(["chat", "tiny"]) == 0
    assert capsys.readouterr().out == "so far\nso far and done\n\n"
