"""`fourfold generate MODEL --prompt TEXT`: continue a text, or answer it, on standard output as it comes."""

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

if TYPE_CHECKING:
    from fourfold.model.transformer import Transformer
    from fourfold.text.chats import Event

# Parameters below which a token is too little work to share out: beside another busy process two threads wait for each other
# and lose by it. Such a model is also run in fp32, which most processors do faster than bf16.
SMALL = 200_000_000
DIM, PLAIN = "\033[2m", "\033[0m"
# A model may utter terminal controls; a terminal gets none but line ends and tabs.
HARMLESS = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


def generate(
    model: Annotated[str, typer.Argument(help="Name or folder of a checkpoint.")] = "nano",
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads it from standard input.")] = ...,  # type: ignore
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt as a user's message, and answer it.")] = False,
    thinking: Annotated[bool, typer.Option("--thinking", help="As --chat, and let the model think first.")] = False,
    chat_format: Annotated[str | None, typer.Option(help="As --chat, with v3, chatml, ...; if not as the checkpoint says.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this share.")] = 0.95,
    top_k: Annotated[int, typer.Option(help="Draw from this many of the likeliest; 0 for all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end instead of a stream.")] = False,
) -> None:
    """Continue a text, or answer a message; an answer is printed without thoughts, which go to standard error."""
    from fourfold.engine.generate import generate as run
    from fourfold.engine.sampler import Sampling
    from fourfold.text.chats import Content, choose, collect

    sampling = Sampling(temperature, top_p, top_k, seed=seed, max_tokens=max_tokens, stop=stop or ())
    text = _standard_input() if prompt == "-" else prompt
    network = open_model(model)
    tokenizer, answers = network.tokenizer, chat or thinking or chat_format is not None
    if answers:
        form = choose(tokenizer, chat_format)
        ids, opened = form.prompt(tokenizer, [{"role": "user", "content": text}], thinking=thinking)
        steps = form.read(run(network, ids, sampling, tokenizer), tokenizer, opened)
    else:
        ids = tokenizer.prefix + tokenizer.encode(text)
        steps = ((piece, [Content(piece.text)]) for piece in run(network, ids, sampling, tokenizer))
    screen, said, times = Screen(), [], []
    for piece, events in steps:
        times.append(time.perf_counter())
        said += events
        reason = piece.finish_reason
        if not as_json:
            screen.show(events)
    if not as_json:
        return screen.end()
    reply = collect(said)
    speed = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None  # decoding alone, without the prompt
    result = {"text": reply.content, "tokens": len(times), "prompt_tokens": len(ids)}
    if answers:
        result |= {key: value for key, value in reply.to_dict().items() if key in ("reasoning_content", "tool_calls")}
    print(json.dumps(result | {"finish_reason": reason, "tokens_per_second": speed}, ensure_ascii=False))


class Screen:
    """Prints a reply as it comes: the answer, calls as name(arguments), and thoughts dimmed before it.

    Where standard output is no terminal it gets the answer alone, and standard error the thoughts.
    """

    def __init__(self) -> None:
        self.terminal = sys.stdout.isatty()
        self.thoughts = sys.stdout if self.terminal else sys.stderr
        self.thought, self.fresh = False, False  # whether thoughts came last, and whether nothing but line ends came since
        self.answered = False

    def show(self, events: "list[Event]") -> None:
        from fourfold.text.chats import CallArguments, CallFinished, CallStarted, Content, Reasoning

        for event in events:
            match event:
                case Reasoning(text):
                    self.thought = True
                    shown = self._harmless(text, self.thoughts)
                    dimmed = f"{DIM}{shown}{PLAIN}" if shown and self.thoughts.isatty() else shown
                    print(dimmed, end="", flush=True, file=self.thoughts)
                case CallStarted(_, name):
                    self._answer(f"\n{name}(" if self.answered else f"{name}(")
                case Content(text) | CallArguments(_, text):
                    self._answer(text)
                case _:
                    self._answer(")" if isinstance(event, CallFinished) else " ...)")

    def end(self) -> None:
        """Close the line, or both."""
        if self.thought and not self.terminal:
            print(file=self.thoughts)
        print(flush=True)

    def _answer(self, text: str) -> None:
        if self.thought:
            print(file=self.thoughts, flush=True)
            self.thought, self.fresh = False, True
        text = text.lstrip("\n") if self.fresh else text
        self.fresh, self.answered = self.fresh and not text, self.answered or bool(text)
        print(self._harmless(text, sys.stdout), end="", flush=True)

    def _harmless(self, text: str, stream: TextIO) -> str:
        return text.translate(HARMLESS) if stream.isatty() else text


def open_model(name: str) -> "Transformer":
    """A checkpoint that has a tokenizer, with a sign of life on a terminal while it loads."""
    from rich.console import Console

    from fourfold.errors import CheckpointError

    with Console(stderr=True).status(f"loading {name}"):
        import torch

        import fourfold

        model = fourfold.load(name)
    if model.tokenizer is None:
        raise CheckpointError(f"{name}: has no tokenizer.json; save the checkpoint with its tokenizer")
    if sum(parameter.numel() for parameter in model.parameters()) < SMALL:
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        model.float()
    return model


def _standard_input() -> str:
    from fourfold.errors import DataError

    try:
        return sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"--prompt -: standard input is not UTF-8 text (byte {error.start}); convert it first") from None
