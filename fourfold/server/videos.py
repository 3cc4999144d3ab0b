"""/v1/videos: clips of a caption, made while nobody waits: a job that is asked after, and then has a film."""

import asyncio
import logging
import math
import secrets
import time
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from fourfold.engine.layout import Grid
from fourfold.media.spans import FILM_RATE
from fourfold.server.asking import Reply, submit
from fourfold.server.billing import origin_of
from fourfold.server.chat_body import UserId
from fourfold.server.drawing import frames_of, grid_of, pixels_said, requests, sizes_of
from fourfold.server.drawn import file_of
from fourfold.server.errors import ApiError, api_error, bad
from fourfold.server.fields import COMMON, Body
from fourfold.server.forms import documented, form_of
from fourfold.server.images import drawing_model
from fourfold.server.models import Served, Serving, serving_of
from fourfold.server.shelf import owner_of
from fourfold.text.chats import DrawingBegun, DrawingCodes, DrawingFinished

router = APIRouter(tags=["videos"])
log = logging.getLogger("fourfold.server")


class VideoBody(Body):
    """A clip to be drawn."""

    endpoint: ClassVar = "/v1/videos"
    accepted: ClassVar = COMMON
    model: str | None = Field(None, description="By default the first that draws clips.")
    prompt: str = Field(min_length=1)
    size: str | None = Field(None, description="WIDTHxHEIGHT in pixels, or auto: what the model has learnt.")
    seconds: str | None = Field(None, description="By default what the model has learnt.")
    seed: int | None = Field(None, description="The same clip for the same seed.")
    guidance: float | None = Field(None, ge=0, le=100, description="How much the prompt counts; 1: as the model says.")
    user_id: UserId | None = Field(None, description="Prefixes are shared between requests of one user_id only.")


@dataclass
class Job:
    """A clip that is made, or was."""

    body: VideoBody
    model: str
    grid: Grid
    size: str
    id: str = field(default_factory=lambda: f"video_{secrets.token_hex(12)}")
    created: int = field(default_factory=lambda: int(time.time()))
    completed: int | None = None
    status: Literal["queued", "in_progress", "completed", "failed"] = "queued"
    codes: int = 0  # drawn so far
    content: bytes | None = None
    error: dict[str, Any] | None = None
    reply: Reply | None = None
    task: "asyncio.Task[None] | None" = None

    @property
    def is_going(self) -> bool:
        return self.status in ("queued", "in_progress")

    def shown(self) -> dict[str, Any]:
        """As clients see it."""
        return {
            "id": self.id,
            "object": "video",
            "created_at": self.created,
            "completed_at": self.completed,
            "expires_at": None,
            "status": self.status,
            "progress": 100 if self.status == "completed" else min(99, 100 * self.codes // math.prod(self.grid)),
            "model": self.model,
            "prompt": self.body.prompt,
            "seconds": f"{self.grid[0] / FILM_RATE:g}",
            "size": self.size,
            "remixed_from_video_id": None,
            "error": self.error,
        }

    def fail(self, error: ApiError) -> None:
        self.status, self.error = "failed", {"code": error.code or error.type, "message": error.message}


@router.post("/v1/videos", openapi_extra=documented(VideoBody))
async def create(request: Request) -> dict[str, Any]:
    """Begin a clip; its job is answered at once."""
    body, _ = await form_of(request, VideoBody)
    serving = serving_of(request)
    served, owner = drawing_model(serving, body.model, "film"), owner_of(request)
    origin = origin_of(request, body.user_id).background()
    frames, *usual = sizes_of(served, "film").film_grid
    grid = grid_of(served, body.size, tuple(usual), frames_of(body.seconds, frames))
    job = Job(body, served.name, grid, pixels_said(served, grid))
    if not serving.videos.put(owner, job.id, job):
        raise ApiError(429, "too many videos are being made; ask again later", code="queue_full", headers={"Retry-After": "10"})
    try:
        asked = (serving, served, body.prompt, grid, 1, body.seed, body.guidance, origin.namespace)
        [job.reply] = await submit(serving, served, await asyncio.to_thread(requests, *asked), origin)
    except BaseException:
        serving.videos.pop(owner, job.id)
        raise
    job.task = asyncio.create_task(_make(serving, served, owner, job, job.reply))
    return job.shown()


@router.get("/v1/videos/{video_id}")
async def retrieve(video_id: str, request: Request) -> dict[str, Any]:
    """How far it is."""
    return _job(request, video_id).shown()


@router.get("/v1/videos/{video_id}/content", response_class=Response)
async def content(video_id: str, request: Request, variant: Literal["video"] = "video") -> Response:
    """The clip as MP4, once it is completed."""
    job = _job(request, video_id)
    if job.content is None:
        remedy = "ask for another" if job.status == "failed" else "ask again when it is completed"
        raise bad("video_id", f"{job.id} is {job.status}; {remedy}", code="video_not_ready")
    return Response(job.content, media_type="video/mp4")


@router.delete("/v1/videos/{video_id}")
async def delete(video_id: str, request: Request) -> dict[str, Any]:
    """Forget a clip, or give it up while it is made."""
    job = _job(request, video_id)
    serving_of(request).videos.pop(owner_of(request), video_id)
    job.status = "failed"
    if job.reply is not None:
        job.reply.cancel()
    return {"id": job.id, "object": "video.deleted", "deleted": True}


def _job(request: Request, name: str) -> Job:
    return serving_of(request).videos.get(owner_of(request), name)


async def _make(serving: Serving, served: Served, owner: str, job: Job, reply: Reply) -> None:
    """Follow a clip to its end. Whatever goes wrong is what the job says."""
    film = None
    try:
        async for heard in reply:
            match heard:
                case DrawingBegun():
                    job.status = "in_progress"
                case DrawingCodes(codes):
                    job.codes += len(codes)
                case DrawingFinished():
                    film = await asyncio.to_thread(file_of, heard, served.model)
        if not job.is_going:
            return  # it was deleted
        if film is None:
            raise ApiError(500, "the model ended without a clip; ask again")
        if not serving.videos.put(owner, job.id, job, len(film)):
            raise ApiError(503, "there is no room to keep it; delete others, and ask again")
        job.content, job.status, job.completed = film, "completed", int(time.time())
    except Exception as error:
        job.fail(api_error(error))
        if not isinstance(error, ApiError):
            log.exception("video %s", job.id)
