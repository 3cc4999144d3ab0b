"""`fourfold generate --draw FILE` and `--film FILE`: a caption becomes a picture or a clip."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fourfold.cli.gallery import show, write
from fourfold.cli.screen import Progress, one_line_warnings

if TYPE_CHECKING:
    from fourfold.engine.layout import Grid
    from fourfold.engine.sampler import Sampling
    from fourfold.model.transformer import Transformer

ASKED = {"--draw": "Draw this: {}", "--film": "Film this: {}"}  # as in training (data/omni_wordings.py)


class Wanted(NamedTuple):
    """Which option asked for a drawing, where it goes, its size (None: that of the model's config), and how it is guided."""

    option: str
    path: Path
    grid: "Grid | None"
    guidance: float


def wanted(draw: Path | None, film: Path | None, grid: str | None, guidance: float) -> Wanted | None:
    """What these options ask for together; None where no drawing is. Raises FourfoldError naming the one that is wrong."""
    from fourfold.engine.canvas import check_guidance
    from fourfold.errors import ConfigError

    option, path = ("--film", film) if draw is None else ("--draw", draw)
    if path is None:
        if grid is not None:
            raise ConfigError("--grid: says the size of a drawing; give --draw or --film too")
        return None
    if draw and film:
        raise ConfigError("--film: does not go with --draw; give one of them")
    _check_suffix(option, path)
    return Wanted(option, path, _size(option, grid), check_guidance(guidance))


def draw(
    network: "Transformer",
    wanted: Wanted,
    caption: str,
    shown: list[dict[str, Any]],
    sampling: "Sampling",
    chat_format: str | None,
    as_json: bool,
) -> None:
    """Draw a caption (an empty one: whatever comes) and write the file."""
    from fourfold.engine.canvas import Drawing
    from fourfold.engine.generate import generate
    from fourfold.engine.prompts import prompt_of
    from fourfold.engine.sampler import Sampling
    from fourfold.media import spans
    from fourfold.text.chats import choose

    usual, tokenizer = _usual(network, wanted.option), network.tokenizer
    grid = wanted.grid or usual
    asked = [*shown, {"type": "text", "text": ASKED[wanted.option].format(caption)}] if caption else shown
    with one_line_warnings():
        prompt, _ = prompt_of(network, [{"role": "user", "content": asked}], choose(tokenizer, chat_format))
    opening = spans.draw_opening if len(grid) == 2 else spans.film_opening
    span = spans.join([prompt, opening(tokenizer, *grid)])
    drawing = Drawing(codes=sampling, guidance=wanted.guidance)
    pieces = generate(network, span, Sampling(seed=sampling.seed, max_tokens=None), tokenizer, drawing=drawing)
    pixels, speed = _drawn(pieces)
    write(pixels, wanted.path)
    if as_json:
        result = {"files": [str(wanted.path)], "grid": list(grid), "prompt_tokens": len(span), "tokens_per_second": speed}
        return print(json.dumps(result, ensure_ascii=False))
    show(pixels)
    print(wanted.path)


def _drawn(pieces: Any) -> tuple[Any, float | None]:
    """The pixels of the first drawing, and codes a second."""
    from fourfold.text.chats import DrawingFinished

    progress, times = Progress(), []
    for piece in pieces:
        progress.show(piece.drawing)
        if isinstance(piece.drawing, DrawingFinished):
            break
        times.append(time.perf_counter())
    return piece.drawing.pixels, (len(times) - 2) / (times[-1] - times[1]) if len(times) > 2 else None


def _usual(network: "Transformer", option: str) -> "Grid":
    """The size of the model's config. Raises FourfoldError for a model that draws nothing, or has no codec."""
    from fourfold.errors import CheckpointError, ConfigError

    sizes = network.config.media_out
    if sizes is None:
        raise ConfigError(f"{option}: this model draws nothing; choose one whose config has media_out, such as nano-omni")
    if network.codec is None:
        raise CheckpointError(f"{option}: the checkpoint has no folder codec, which makes pixels of codes; put its codec there")
    return sizes.image_grid if option == "--draw" else sizes.film_grid


def _size(option: str, grid: str | None) -> "Grid | None":
    from fourfold.engine.layout import parse_grid
    from fourfold.errors import ConfigError

    size, sides = parse_grid(grid or ""), {"--draw": 2, "--film": 3}[option]
    if grid is not None and (size is None or len(size) != sides):
        form = "rows x columns, such as 4x4" if sides == 2 else "frames x rows x columns, such as 8x4x4"
        raise ConfigError(f"--grid: is {grid!r}; with {option} give {form}")
    return size


def _check_suffix(option: str, path: Path) -> None:
    """Before anything is drawn."""
    from fourfold.errors import MediaError
    from fourfold.media.writing import PICTURES, WRITERS

    suffixes = list(PICTURES if option == "--draw" else WRITERS)
    if path.suffix.lower() not in suffixes:
        raise MediaError(f"{option}: {path} does not end in {', '.join(suffixes)}; choose such a name")
