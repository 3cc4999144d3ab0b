"""The application: routers of all APIs over one `Serving`, and what every request passes through."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.middleware.cors import CORSMiddleware
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from fourfold import __version__
from fourfold.errors import FourfoldError
from fourfold.server import (
    balance,
    chat,
    completions,
    fields,
    health,
    images,
    messages,
    metrics,
    page,
    responses,
    tokenize,
    transcriptions,
    upstream,
    videos,
)
from fourfold.server.auth import Auth
from fourfold.server.billing import Billing, Repeated
from fourfold.server.errors import ApiError, api_error
from fourfold.server.idempotency import response_of
from fourfold.server.ledger import Ledger
from fourfold.server.limits import Bodies
from fourfold.server.metrics import Metrics
from fourfold.server.models import Models, Serving
from fourfold.server.settings import Settings

ROUTERS = (
    *(health, chat, completions, responses, messages, images, videos, transcriptions),
    *(tokenize, fields, balance, metrics, page),
)
# The published API answers without /v1 too, its beta features under /beta, and Anthropic's form under /anthropic.
SHORT = ("/chat/completions", "/completions", "/models", "/responses", "/messages")
ABOUT = """An OpenAI-compatible API. A field that an endpoint does not know is a 400 that names it; those that are taken without
effect are listed by `GET /v1/fields`."""


def create_app(models: Models, settings: Settings, ledger: Ledger | None = None) -> FastAPI:
    """The whole server as an ASGI application. It closes the engines when it shuts down."""
    serving = Serving(models, settings, ledger, Metrics())
    for served in models.own():
        serving.metrics.watch(served.name, served.engine)
    app = FastAPI(title="Fourfold", version=__version__, description=ABOUT, docs_url=None, redoc_url=None, lifespan=_lifespan)
    app.state.serving = serving
    for module in ROUTERS:
        app.include_router(module.router)
    _add_handlers(app)
    # The last one added is the first to see a request.
    app.add_middleware(upstream.PassThrough, serving=serving)
    app.add_middleware(Billing)
    app.add_middleware(Bodies, serving=serving)
    app.add_middleware(Auth, serving=serving)
    app.add_middleware(ShortPaths)
    if settings.cors:
        app.add_middleware(CORSMiddleware, allow_origins=settings.cors, allow_methods=["*"], allow_headers=["*"])
    app.openapi = lambda: _document(app, FastAPI.openapi(app))  # type: ignore[method-assign]
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    serving: Serving = app.state.serving
    if serving.ledger is not None:
        await run_in_threadpool(serving.ledger.recover)
    yield
    serving.stop()
    for served in serving.models.own():
        await run_in_threadpool(served.engine.close, False)


class ShortPaths:
    """Middleware: the paths of the published API as ours."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            path = scope["path"]
            for before in ("/beta", "/anthropic"):
                path = path.removeprefix(before) if path.startswith(f"{before}/") else path
            is_short = any(path == short or path.startswith(f"{short}/") for short in SHORT)
            scope["path"] = f"/v1{path}" if is_short else path
        await self.app(scope, receive, send)


def _add_handlers(app: FastAPI) -> None:
    def answer(request: Request, error: ApiError) -> Response:
        return app.state.serving.refuse(error, request.url.path)

    @app.exception_handler(ApiError)
    @app.exception_handler(FourfoldError)
    async def known(request: Request, error: Exception) -> Response:
        return answer(request, api_error(error))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(request, fields.refusal(error, "json" in request.headers.get("content-type", "")))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        said = {
            404: f"{request.url.path[:200]}: there is nothing here",
            405: f"{request.method}: is not for {request.url.path[:200]}",
        }
        message = said.get(error.status_code) if error.detail in ("Not Found", "Method Not Allowed") else None
        return answer(request, ApiError(error.status_code, message or str(error.detail), headers=dict(error.headers or {})))

    @app.exception_handler(Repeated)
    async def repeated(request: Request, error: Repeated) -> Response:
        return response_of(error.replay)

    @app.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return answer(request, api_error(error))  # the traceback goes to the log, as it is raised again


def _document(app: FastAPI, document: dict[str, Any]) -> dict[str, Any]:
    """The OpenAPI document, with how keys are sent and which errors there are."""
    schemes = {"bearer": {"type": "http", "scheme": "bearer"}, "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"}}
    document.setdefault("components", {})["securitySchemes"] = schemes
    document["security"] = [{"bearer": []}, {"x-api-key": []}, {}]
    for path in document["paths"].values():
        for operation in path.values():
            operation["responses"].pop("422", None)
            operation["responses"]["default"] = {"description": "An error: {error: {message, type, param, code}}"}
    return document
