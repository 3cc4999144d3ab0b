"""`fourfold chat MODEL`: a conversation in the terminal, or through a pipe, a line for each message."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from fourfold.cli.conversation import Conversation
from fourfold.cli.gallery import Gallery
from fourfold.cli.generate import open_model
from fourfold.cli.screen import Screen, note, one_line_warnings

HELP = "/reset starts over, /exit (or Ctrl-D) ends, Ctrl-C stops an answer, /help says this"
SHOWING = "/image FILE, /video FILE and /audio FILE go with the next message, /look shows the model what it drew last"


def chat(
    model: Annotated[str, typer.Argument(help="Name or folder of a checkpoint.")] = "nano",
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this share.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")] = None,
    system: Annotated[str | None, typer.Option(help="A message that comes before all others.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer; codes of drawings count.")] = 512,
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Let the model think first.")] = False,
    chat_format: Annotated[str | None, typer.Option(help="v3, chatml, ...; if not as the checkpoint says.")] = None,
    guidance: Annotated[float, typer.Option(help="How much drawings go by what was asked; 1 for no more than learnt.")] = 2.0,
    save: Annotated[Path | None, typer.Option(help="Folder for drawings, by default $FOURFOLD_HOME/drawings.")] = None,
) -> None:
    """Talk to a checkpoint. Lines from a pipe are answered one by one.

    A model with media parts is shown files by /image FILE, /video FILE and /audio FILE, each as often as wanted, which go with the
    next message. What it draws is saved as PNG, clips as GIF, and shown where the terminal has 24-bit colour.
    """
    from fourfold.engine.canvas import Drawing, check_guidance
    from fourfold.engine.sampler import Sampling
    from fourfold.paths import home
    from fourfold.text.chats import choose

    sampling = Sampling(temperature, top_p, seed=seed, max_tokens=max_tokens)
    check_guidance(guidance)
    network = open_model(model)
    drawing = Drawing(begin=network.codec is not None, guidance=guidance)
    talk = Conversation(network, sampling, system, thinking, choose(network.tokenizer, chat_format), drawing)
    gallery, terminal = Gallery(save or home() / "drawings"), sys.stdin.isatty()
    note(f"{model}: {_help(talk)}", terminal)
    for line in _lines(terminal):
        if line in ("/exit", "/quit"):
            return
        if line:
            _answer(talk, line, gallery)


def _answer(talk: Conversation, line: str, gallery: Gallery) -> None:
    """Do what a line says; what cannot be done is said in one, and nothing is lost."""
    from fourfold.errors import FourfoldError

    try:
        if line == "/reset":
            talk.reset()
        elif line == "/look":
            _attached(talk.look(), "the drawing")
        elif found := re.fullmatch(r"/(image|video|audio)\s+(.+)", line):
            path = Path(found[2].strip("'\"")).expanduser()
            with one_line_warnings():
                _attached(talk.attach(found[1], path), path.name)
        elif re.fullmatch(r"/[^/\s]*", line):  # a lone word is a mistyped command, not a path or a question
            print(_help(talk), file=sys.stderr)
        else:
            _say(talk, line, gallery)
    except FourfoldError as error:
        print(f"error: {error}{'' if line.startswith('/') else '; /reset starts over'}", file=sys.stderr)


def _say(talk: Conversation, text: str, gallery: Gallery) -> None:
    """Print the answer as it comes; Ctrl-C ends the answer, not the conversation."""
    screen, terminal = Screen(gallery), sys.stdout.isatty()
    try:
        for events in talk.ask(text):
            screen.show(events)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    screen.end()
    if talk.finish_reason == "length":
        full = len(talk.sequence) + 1 >= talk.sequence.limit
        note("the context is full; /reset starts over" if full else "cut off at --max-tokens", terminal)


def _attached(tokens: int, name: str) -> None:
    note(f"{name} goes with the next message ({tokens} tokens)", sys.stdin.isatty())


def _help(talk: Conversation) -> str:
    return f"{HELP}; {SHOWING}" if talk.model.config.has_media else HELP


def _lines(terminal: bool) -> Iterator[str]:
    """Messages without surrounding white space, until the input ends."""
    if not terminal:
        sys.stdin.reconfigure(errors="replace")  # type: ignore[union-attr]
        yield from (line.strip() for line in sys.stdin)
        return
    import readline  # noqa: F401  (history and editing for input())

    while True:
        try:
            yield input("> ").strip()
        except EOFError:
            return print()
