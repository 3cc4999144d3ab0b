"""`fourfold generate MODEL --prompt TEXT`: continue a text, or answer it, on standard output as it comes."""

import json
import os
import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from fourfold.model.transformer import Transformer

# Parameters below which a token is too little work to share out: beside another busy process two threads wait for each other
# and lose by it. Such a model is also run in fp32, which most processors do faster than bf16.
SMALL = 200_000_000


def generate(
    model: Annotated[str, typer.Argument(help="Name or folder of a checkpoint.")] = "nano",
    prompt: Annotated[str, typer.Option(help="Text to continue; - reads it from standard input.")] = ...,  # type: ignore
    chat: Annotated[bool, typer.Option("--chat", help="Put the prompt as a user's message, and answer it.")] = False,
    chat_format: Annotated[str | None, typer.Option(help="With --chat: v3, chatml, ...; if not as the checkpoint says.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Stop after this many tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.")] = 0.7,
    top_p: Annotated[float, typer.Option(help="Draw from the likeliest tokens that hold this share.")] = 0.95,
    top_k: Annotated[int, typer.Option(help="Draw from this many of the likeliest; 0 for all.")] = 0,
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object at the end instead of a stream.")] = False,
) -> None:
    """Continue a text with a checkpoint."""
    from fourfold.engine.generate import generate as run
    from fourfold.engine.sampler import Sampling
    from fourfold.text.chats import choose

    sampling = Sampling(temperature, top_p, top_k, seed=seed, max_tokens=max_tokens, stop=stop or ())
    text = _standard_input() if prompt == "-" else prompt
    network = open_model(model)
    tokenizer = network.tokenizer
    if chat:
        ids = choose(tokenizer, chat_format).encode(tokenizer, [{"role": "user", "content": text}])
    else:
        ids = tokenizer.prefix + tokenizer.encode(text)
    pieces, times = [], []
    for piece in run(network, ids, sampling, tokenizer):
        pieces.append(piece)
        times.append(time.perf_counter())
        if not as_json:
            print(piece.text, end="", flush=True)
    if not as_json:
        return print()
    speed = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None  # decoding alone, without the prompt
    result = {"text": "".join(piece.text for piece in pieces), "tokens": len(pieces), "prompt_tokens": len(ids)}
    print(json.dumps(result | {"finish_reason": pieces[-1].finish_reason, "tokens_per_second": speed}, ensure_ascii=False))


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
