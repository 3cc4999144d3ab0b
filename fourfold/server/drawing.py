"""What /v1/images and /v1/videos share: a caption becomes a request to draw it, of a size in pixels."""

import re
from typing import TYPE_CHECKING

from fourfold.engine.canvas import GUIDANCE, Drawing
from fourfold.engine.layout import Grid, check_grid, layout_of
from fourfold.engine.prompts import prompt_of
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError
from fourfold.media import spans
from fourfold.media.spans import FILM_RATE
from fourfold.server.asking import seeded
from fourfold.server.errors import bad
from fourfold.server.media import limits_of
from fourfold.server.models import Served, Serving

if TYPE_CHECKING:
    from fourfold.parts import MediaOutConfig

ASKED = {2: "Draw this: {}", 3: "Film this: {}"}  # as in training (data/omni_wordings.py), by the dimensions of the grid


def sizes_of(served: Served, kind: str) -> "MediaOutConfig":
    """What a model draws by itself; kind: draw or film. Raises ApiError for one that makes none of that kind."""
    sizes = served.model.config.media_out
    if kind not in served.can or sizes is None or served.model.codec is None:
        raise bad("model", f"{served.name} {kind}s nothing; choose a model that does, such as nano-omni")
    return sizes


def grid_of(served: Served, size: str | None, usual: Grid, frames: int | None = None) -> Grid:
    """Rows and columns of codes for "WIDTHxHEIGHT" in pixels, the usual ones for None and "auto"; before them `frames`, if any.

    Raises ApiError for a size that is no multiple of what one code stands for, or too large.
    """
    side = served.model.config.media_out.code_downsample
    rows, columns = usual
    if size not in (None, "auto"):
        found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", size)
        columns, rows = (int(found[1]), int(found[2])) if found else (0, 0)
        if not found or columns % side or rows % side:
            said = f"{usual[1] * side}x{usual[0] * side}"
            raise bad(
                "size", f"is {size[:20]}; give WIDTHxHEIGHT, multiples of {side}, such as {said}, which it has learnt, or auto"
            )
        rows, columns = rows // side, columns // side
    grid = (rows, columns) if frames is None else (frames, rows, columns)
    try:
        return check_grid(grid)
    except ConfigError as error:
        raise bad("size", f"is too large; {str(error).removeprefix('grid: ')}") from error


def pixels_said(served: Served, grid: Grid) -> str:
    """ "64x64" of (8, 8)."""
    side = served.model.config.media_out.code_downsample
    return f"{grid[-1] * side}x{grid[-2] * side}"


def requests(
    serving: Serving,
    served: Served,
    caption: str,
    grid: Grid,
    n: int,
    seed: int | None,
    guidance: float | None,
    namespace: str,
    shown: list[dict] | None = None,
) -> list[Request]:
    """What to submit for n drawings of a caption, each over as soon as it is drawn; `shown` comes before the caption."""
    asked = [*(shown or []), {"type": "text", "text": ASKED[len(grid)].format(caption)}]
    prompt, _ = prompt_of(served.model, [{"role": "user", "content": asked}], served.speaker(), limits_of(serving.settings))
    opening = spans.draw_opening if len(grid) == 2 else spans.film_opening
    layout = layout_of(grid, served.tokenizer)
    span = spans.join([prompt, opening(served.tokenizer, *grid)])
    if len(span) + len(layout) - layout.opening > served.context:
        raise bad(
            "size", f"and prompt take {len(span) + len(layout)} tokens of {served.context}; choose a smaller one, or say less"
        )
    sampling = Sampling(seed=None if seed is None else seed % 2**62, max_tokens=len(layout) - layout.opening)
    drawing = Drawing(guidance=GUIDANCE if guidance is None else guidance)
    return [Request(span, seeded(sampling, place), drawing, namespace=namespace) for place in range(n)]


def frames_of(seconds: str | None, usual: int) -> int:
    """How many frames so many seconds are. Raises ApiError."""
    if seconds is None:
        return usual
    try:
        frames = round(float(seconds) * FILM_RATE)
    except (ValueError, OverflowError):
        frames = 0
    if not 1 <= frames <= 10_000:
        raise bad("seconds", f"is {seconds[:20]}; give a number such as {usual / FILM_RATE:g}, which the model has learnt")
    return frames
