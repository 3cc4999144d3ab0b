"""`fourfold chat MODEL`: a conversation in the terminal, or through a pipe, a line for each message."""

import re
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fourfold.cli.generate import DIM, PLAIN, Screen, open_model

if TYPE_CHECKING:
    from fourfold.text.chats import ChatFormat, Event

HELP = "/reset starts over, /exit (or Ctrl-D) ends, Ctrl-C stops an answer, /help says this"


def chat(
    model: Annotated[str, typer.Argument(help="Name or folder of a checkpoint.")] = "nano",
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this share.")] = 0.95,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")] = None,
    system: Annotated[str | None, typer.Option(help="A message that comes before all others.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.")] = 512,
    thinking: Annotated[bool, typer.Option("--thinking/--no-thinking", help="Let the model think first.")] = False,
    chat_format: Annotated[str | None, typer.Option(help="v3, chatml, ...; if not as the checkpoint says.")] = None,
) -> None:
    """Talk to a checkpoint. Lines from a pipe are answered one by one."""
    from fourfold.engine.sampler import Sampling
    from fourfold.errors import FourfoldError
    from fourfold.text.chats import choose

    sampling = Sampling(temperature, top_p, seed=seed, max_tokens=max_tokens)
    network = open_model(model)
    talk = Conversation(network, sampling, system, thinking, choose(network.tokenizer, chat_format))
    terminal = sys.stdin.isatty()
    _note(f"{model}: {HELP}", terminal)
    for line in _lines(terminal):
        if line in ("/exit", "/quit"):
            return
        if line == "/reset":
            talk.reset()
        elif re.fullmatch(r"/[^/\s]*", line):  # a lone word is a mistyped command, not a path or a question
            print(HELP, file=sys.stderr)
        elif line:
            try:
                _say(talk, line)
            except FourfoldError as error:
                print(f"error: {error}; /reset starts over", file=sys.stderr)


class Conversation:
    """The messages so far and the cache that has seen them, so that a turn computes only what is new."""

    def __init__(self, model, sampling, system: str | None, thinking: bool, chat: "ChatFormat | None" = None) -> None:
        from fourfold.engine.generate import Sequence
        from fourfold.text.chats import choose

        self.model, self.sampling, self.thinking, self.system = model, sampling, thinking, system
        self.chat = chat or choose(model.tokenizer)
        self.sequence = Sequence(model)
        self.finish_reason: str | None = None  # of the last answer
        self.reset()

    def reset(self) -> None:
        self.messages = [{"role": "system", "content": self.system}] if self.system else []

    def ask(self, text: str) -> "Iterator[list[Event]]":
        """The events of an answer; it joins the messages when it ends or is stopped, or nothing does if it cannot begin."""
        from fourfold.engine.generate import generate
        from fourfold.text.chats import collect

        tokenizer = self.model.tokenizer
        messages = [*self.messages, {"role": "user", "content": text}]
        prompt, opened = self.chat.prompt(tokenizer, messages, thinking=self.thinking)
        pieces = generate(self.model, prompt, self.sampling, tokenizer, self.sequence)
        self.finish_reason, said = None, []
        try:
            for piece, events in self.chat.read(pieces, tokenizer, opened):
                self.finish_reason = piece.finish_reason
                said += events
                yield events
        finally:
            reply = collect(said)  # thoughts are not remembered
            content = reply.content.lstrip("\n") if reply.reasoning_content else reply.content
            self.messages = [*messages, {"role": "assistant", "content": content}]


def _say(talk: Conversation, text: str) -> None:
    """Print the answer as it comes; Ctrl-C ends the answer, not the conversation."""
    screen, terminal = Screen(), sys.stdout.isatty()
    try:
        for events in talk.ask(text):
            screen.show(events)
    except KeyboardInterrupt:
        if not sys.stdin.isatty():
            raise
    screen.end()
    if talk.finish_reason == "length":
        full = len(talk.sequence.tokens) + 1 >= talk.sequence.limit
        _note("the context is full; /reset starts over" if full else "cut off at --max-tokens", terminal)


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


def _note(text: str, terminal: bool) -> None:
    if terminal:
        print(f"{DIM}{text}{PLAIN}", file=sys.stderr)
