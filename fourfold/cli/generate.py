"""`fourfold generate MODEL --prompt TEXT`: continue a text, answer it, or draw it, on standard output as it comes."""

import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from fourfold.cli.screen import Screen, one_line_warnings

if TYPE_CHECKING:
    from fourfold.model.transformer import Transformer

# Parameters below which a token is too little work to share out: beside another busy process two threads wait for each other
# and lose by it. Such a model is also run in fp32, which most processors do faster than bf16.
SMALL = 200_000_000
KINDS = ("image", "video", "audio")
Files = list[Path] | None


class InOrder(TyperCommand):
    """Notes in the context's `meta` which of KINDS stand on the command line, one after the other: options are gathered by name."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        _, _, given = self.make_parser(ctx).parse_args(list(args))
        ctx.meta["kinds"] = [option.name for option in given if option.name in KINDS]
        return super().parse_args(ctx, args)


def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Name or folder of a checkpoint.")] = "nano",
    prompt: Annotated[str, typer.Option(help="Text to continue, or a caption to draw; - reads it from standard input.")] = ...,  # type: ignore
    image: Annotated[
        Files,
        typer.Option(help="As --chat, about this picture; as the next two, may be given several times, and is shown in order."),
    ] = None,
    video: Annotated[Files, typer.Option(help="As --chat, about this clip.")] = None,
    audio: Annotated[Files, typer.Option(help="As --chat, about this sound.")] = None,
    draw: Annotated[Path | None, typer.Option(help="Draw the prompt into this .png or .webp file.")] = None,
    film: Annotated[Path | None, typer.Option(help="Draw the prompt as a clip, into this .mp4, .gif or .webp file.")] = None,
    grid: Annotated[
        str | None, typer.Option(help="Codes of a drawing: rows x columns (4x4), of a clip frames too (8x4x4).")
    ] = None,
    guidance: Annotated[float, typer.Option(help="How much a drawing goes by the prompt; 1 for no more than learnt.")] = 2.0,
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt as a user's message, and answer it.")] = False,
    thinking: Annotated[bool, typer.Option("--thinking", help="As --chat, and let the model think first.")] = False,
    chat_format: Annotated[str | None, typer.Option(help="As --chat, with v3, chatml, ...; if not as the checkpoint says.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens of text.")] = 256,
    temperature: Annotated[float | None, typer.Option(help="0 always takes the likeliest; else 0.7, and 1 to draw.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Choose of the likeliest that hold this share; else 0.95, and 1 to draw.")
    ] = None,
    top_k: Annotated[int, typer.Option(help="Choose of this many of the likeliest; 0 for all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed chooses the same tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end instead of a stream.")] = False,
) -> None:
    """Continue a text, answer a message (thoughts go to standard error), or draw a caption into a file, whose name is printed."""
    from fourfold.cli import drawing
    from fourfold.engine.sampler import Sampling

    text = _standard_input() if prompt == "-" else prompt
    wanted = drawing.wanted(draw, film, grid, guidance)
    usual = (1.0, 1.0) if wanted else (0.7, 0.95)
    given = (usual[0] if temperature is None else temperature, usual[1] if top_p is None else top_p)
    sampling = Sampling(*given, top_k, seed=seed, max_tokens=max_tokens, stop=stop or ())
    network = open_model(model)
    files = {kind: iter(given or []) for kind, given in zip(KINDS, (image, video, audio), strict=True)}
    shown = [{"type": kind, "source": next(files[kind])} for kind in context.meta["kinds"]]
    if wanted:
        return drawing.draw(network, wanted, text, shown, sampling, chat_format, as_json)
    if shown or chat or thinking or chat_format is not None:
        said: Any = [*shown, {"type": "text", "text": text}] if shown else text
        return _answer(network, said, sampling, thinking, chat_format, as_json)
    _continue(network, text, sampling, as_json)


def _answer(network: "Transformer", content: Any, sampling: Any, thinking: bool, chat_format: str | None, as_json: bool) -> None:
    """What the assistant says to a message."""
    from fourfold.engine.canvas import Drawing
    from fourfold.engine.generate import generate as run
    from fourfold.engine.prompts import prompt_of
    from fourfold.text.chats import choose

    form = choose(network.tokenizer, chat_format)
    with one_line_warnings():
        span, opened = prompt_of(network, [{"role": "user", "content": content}], form, thinking=thinking)
    pieces = run(network, span, sampling, network.tokenizer, drawing=Drawing(begin=False))
    _print(form.read(pieces, network.tokenizer, opened), len(span), as_json, ("reasoning_content", "tool_calls"))


def _continue(network: "Transformer", text: str, sampling: Any, as_json: bool) -> None:
    """What follows a text."""
    from fourfold.engine.canvas import Drawing
    from fourfold.engine.generate import generate as run
    from fourfold.text.chats import Content

    ids = network.tokenizer.prefix + network.tokenizer.encode(text)
    pieces = run(network, ids, sampling, network.tokenizer, drawing=Drawing(begin=False))
    _print(((piece, [Content(piece.text)]) for piece in pieces), len(ids), as_json)


def _print(steps: Any, prompt_tokens: int, as_json: bool, keys: tuple[str, ...] = ()) -> None:
    """The stream, or one object at its end, with those `keys` of the message that it has."""
    from fourfold.text.chats import collect

    screen, said, times, reason = Screen(), [], [], None
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
    result = {"text": reply.content, "tokens": len(times), "prompt_tokens": prompt_tokens}
    result |= {key: value for key, value in reply.to_dict().items() if key in keys}
    print(json.dumps(result | {"finish_reason": reason, "tokens_per_second": speed}, ensure_ascii=False))


def open_model(name: str, weights: str | None = None) -> "Transformer":
    """A checkpoint that has a tokenizer, with a sign of life on a terminal while it loads; `weights` as in `fourfold.load`."""
    from rich.console import Console

    with Console(stderr=True).status(f"loading {name}"):
        import torch

        import fourfold

        model = fourfold.load(name, weights=weights)
    if model.tokenizer is None:
        fourfold.load_tokenizer(name)  # raises, and says why there is none
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
