"""/v1/images/generations: pictures of a caption, whole, or streamed with what is drawn so far."""

import asyncio
import base64
import math
import time
from collections.abc import AsyncIterator
from typing import Any, ClassVar, Literal

import torch
from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from fourfold.engine.canvas import pixels_of
from fourfold.engine.layout import Grid
from fourfold.server.asking import OURS, Reply, submit, usage_of
from fourfold.server.billing import Origin, origin_of
from fourfold.server.chat_body import UserId
from fourfold.server.drawing import grid_of, pixels_said, requests, sizes_of
from fourfold.server.drawn import file_of, png
from fourfold.server.errors import ApiError, bad
from fourfold.server.fields import COMMON, Body
from fourfold.server.models import Served, Serving, serving_of
from fourfold.server.sse import JSON, EventStream, event, watched, whole
from fourfold.text.chats import DrawingCodes, DrawingFinished, Event

router = APIRouter(tags=["images"])
GREY = 127  # what is not drawn yet


class ImagesBody(Body):
    """Pictures to be drawn."""

    endpoint: ClassVar = "/v1/images/generations"
    accepted: ClassVar = COMMON | {
        "background": "pictures are opaque",
        "moderation": "nothing is looked through",
        "quality": "there is one",
        "style": "say it in the prompt",
        "output_compression": "pictures are sent without loss",
    }
    model: str | None = Field(None, description="By default the first that draws.")
    prompt: str = Field(min_length=1)
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, or auto: what the model has learnt.")
    response_format: Literal["b64_json", "url"] | None = Field(None, description="url: a data: URL.")
    output_format: Literal["png"] | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3, description="Of a stream: pictures of what is drawn so far.")
    seed: int | None = Field(None, description="The same pictures for the same seed.")
    guidance: float | None = Field(None, ge=0, le=100, description="How much the prompt counts; 1: as the model says.")
    user_id: UserId | None = Field(None, description="Prefixes are shared between requests of one user_id only.")


@router.post("/v1/images/generations", response_model=None)
async def generate(body: ImagesBody, request: Request) -> Response:
    """Draw pictures of a prompt."""
    serving = serving_of(request)
    served = drawing_model(serving, body.model, "draw")
    grid = grid_of(served, body.size, sizes_of(served, "draw").image_grid)
    if body.stream and (body.n or 1) > 1:
        raise bad("n", "is more than 1, and a stream holds one picture; ask for them one by one")
    replies = await watched(request, _begun(serving, served, body, grid, origin_of(request, body.user_id)))
    if body.stream:
        return EventStream(_streamed(served, body, grid, replies[0]), serving.settings, replies)
    told = await whole(request, replies)
    files = await asyncio.to_thread(lambda: [file_of(drawing_in(events), served.model) for events in told])
    data = [_shown(file, body.response_format) for file in files]
    about = {"background": "opaque", "output_format": "png", "size": pixels_said(served, grid), "quality": "auto"}
    return JSON({"created": int(time.time()), "data": data, **about, "usage": usage(replies)})


def drawing_model(serving: Serving, name: str | None, kind: str) -> Served:
    """The model of that name, or the first that makes drawings of a kind. Raises ApiError."""
    if name is not None:
        return serving.models.served(name)
    found = next((served for served in serving.models.own() if kind in served.can), None)
    if found is None:
        raise bad("model", f"none that is served here {kind}s; serve one that does, such as nano-omni")
    return found


def drawing_in(events: list[Event]) -> DrawingFinished:
    """The drawing of an answer that is to be one. Raises ApiError where it was not finished."""
    for heard in events:
        if isinstance(heard, DrawingFinished):
            return heard
    raise ApiError(500, "nothing was drawn; the server's log says more")


async def _begun(serving: Serving, served: Served, body: ImagesBody, grid: Grid, origin: Origin) -> list[Reply]:
    n = body.n or 1
    asked = (serving, served, body.prompt, grid, n, body.seed, body.guidance, origin.namespace)
    return await submit(serving, served, await asyncio.to_thread(requests, *asked), origin, answers=n)


async def _streamed(served: Served, body: ImagesBody, grid: Grid, reply: Reply) -> AsyncIterator[bytes]:
    """What is drawn so far at even steps, then the whole."""
    codes, ends, shown, wanted = list[int](), list[Event](), 0, body.partial_images or 0
    about = {"created_at": int(time.time()), "size": pixels_said(served, grid), "quality": "auto", "background": "opaque"}
    about |= {"output_format": "png"}
    async for heard in reply:
        if isinstance(heard, DrawingCodes):
            codes += heard.codes
            if shown < wanted and len(codes) * (wanted + 1) >= math.prod(grid) * (shown + 1) and len(codes) >= grid[1]:
                file = await asyncio.to_thread(so_far, served, list(codes), grid)
                part = {"b64_json": base64.b64encode(file).decode(), "partial_image_index": shown}
                yield event(kind := "image_generation.partial_image", {"type": kind, **part, **about})
                shown += 1
        else:
            ends.append(heard)
    file = await asyncio.to_thread(file_of, drawing_in(ends), served.model)
    whole = {"b64_json": base64.b64encode(file).decode(), "usage": usage([reply])}
    yield event(kind := "image_generation.completed", {"type": kind, **whole, **about})


def so_far(served: Served, codes: list[int], grid: Grid) -> bytes:
    """The rows that are whole, above grey, as PNG."""
    rows, side = len(codes) // grid[1], served.model.config.media_out.code_downsample
    picture = torch.full((3, grid[0] * side, grid[1] * side), GREY, dtype=torch.uint8)
    pixels = pixels_of(served.model, torch.tensor(codes[: rows * grid[1]]).view(rows, grid[1]))
    assert pixels is not None  # it has a codec, see `sizes_of`
    picture[:, : rows * side] = pixels[0]
    return png(picture)


def _shown(file: bytes, form: str | None) -> dict[str, str]:
    data = base64.b64encode(file).decode()
    return {"url": f"data:image/png;base64,{data}"} if form == "url" else {"b64_json": data}


def usage(replies: list[Reply]) -> dict[str, Any]:
    """What pictures took, by the names of this API; our own beside them."""
    found = usage_of(replies, len(replies))
    prompt, said = found["prompt_tokens"], found["completion_tokens"]
    return {
        "input_tokens": prompt,
        "input_tokens_details": {"text_tokens": prompt, "image_tokens": 0},
        "output_tokens": said,
        "output_tokens_details": {"text_tokens": 0, "image_tokens": said},
        **{name: found[name] for name in ("total_tokens", *OURS)},
    }
