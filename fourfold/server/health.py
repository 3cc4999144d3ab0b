"""Whether the server is well, and what it serves."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from fourfold import __version__
from fourfold.server.models import Served, Upstream, serving_of

router = APIRouter(tags=["about"])


@router.get("/health")
def health(request: Request) -> JSONResponse:
    """200 while requests are taken, 503 once the server is stopping."""
    serving = serving_of(request)
    stats = [served.engine.stats() for served in serving.models.own()]
    state = {
        "status": "stopping" if serving.stopping else "ok",
        "version": __version__,
        "running": sum(each.running for each in stats),
        "waiting": sum(each.waiting for each in stats),
    }
    return JSONResponse(state, 503 if serving.stopping else 200)


@router.get("/v1/models")
def models(request: Request) -> dict[str, Any]:
    """All names that requests may give as `model`, aliases included."""
    known = serving_of(request).models
    return {"object": "list", "data": [described(known.get(name)) for name in known.names()]}


@router.get("/v1/models/{name:path}")
def model(name: str, request: Request) -> dict[str, Any]:
    """One of them; 404 for a name that is none."""
    return described(serving_of(request).models.get(name))


def described(each: Served | Upstream) -> dict[str, Any]:
    """A model in OpenAI's form; `capabilities`: what it can be shown and asked for, `thinking`: settled by the name, or null."""
    about = {"id": each.name, "object": "model", "created": each.created, "owned_by": "fourfold"}
    if isinstance(each, Upstream):
        return about | {"owned_by": "upstream"}
    return about | {
        "root": each.root,
        "max_model_len": each.context,
        "capabilities": sorted(each.can),
        "thinking": each.thinking,
    }
