"""From names on the command line to a running server."""

import asyncio
import logging
import platform
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI

from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.engine.store import PrefixStore
from fourfold.engine.store.digest import model_digest
from fourfold.errors import ConfigError
from fourfold.paths import home
from fourfold.server.app import create_app
from fourfold.server.auth import check_exposure
from fourfold.server.ledger import Ledger
from fourfold.server.limits import patient
from fourfold.server.models import Models, Served, serve
from fourfold.server.prices import PriceTable
from fourfold.server.settings import Settings

if TYPE_CHECKING:
    from fourfold.model.transformer import Transformer


def open_app(names: list[str], settings: Settings, load: "Callable[[str], Transformer]") -> FastAPI:
    """Models as NAME, FOLDER or NAME=FOLDER, loaded and ready. Raises ConfigError for what cannot be served so."""
    # Its name is the same after a restart, so that it closes what it left open and not what its neighbour has at work.
    ledger = Ledger(settings.ledger, PriceTable.load(settings.prices), f"{platform.node()}:{settings.port}")
    check_exposure(settings, ledger)  # before models are loaded, which takes its time
    named = [split(name) for name in names]
    if not named and not settings.upstreams:
        raise ConfigError("MODEL: nothing to serve; name a model, or configure upstreams")
    models = Models([_served(name, load(where), settings) for name, where in named], settings)
    return create_app(models, settings, ledger)


def split(name: str) -> tuple[str, str]:
    """NAME=FOLDER, or a name or folder by itself: the name to serve, and where the model is."""
    given, equals, where = name.partition("=")
    return (given, where) if equals else (Path(name).name.removesuffix(".gguf"), name)


def _served(name: str, model: "Transformer", settings: Settings) -> Served:
    try:
        Sampling(**model.tokenizer.settings.sampling)
    except ConfigError as error:
        raise ConfigError(f"{name}: generation_config.json: {error}") from None
    engine = Engine(
        model,
        most_running=settings.most_running,
        most_waiting=settings.most_waiting,
        chunk=settings.chunk_tokens,
        store=_store(model, settings),
        memory=settings.state_bytes,
        drafts=settings.drafts,
    )
    # What is built or measured when it is first used shall not be what somebody waits for.
    engine.generate([Request([0], Sampling(max_tokens=2), use_store=False)])
    return serve(model, name, engine)


def _store(model: "Transformer", settings: Settings) -> PrefixStore | None:
    if not settings.store_bytes:
        return None
    folder = (settings.store_folder or home() / "prefixes") if settings.store_disk_bytes else None
    return PrefixStore(model_digest(model), settings.store_bytes, folder, settings.store_disk_bytes)


class Server(uvicorn.Server):
    """uvicorn, giving answers in the making some time when it stops, and then an error that says so."""

    def __init__(self, app: FastAPI, settings: Settings) -> None:
        self.serving, self.settings = app.state.serving, settings
        config = uvicorn.Config(
            app,
            host=settings.host,
            port=settings.port,
            http=patient(settings.body_seconds),
            log_level="warning",
            server_header=False,
            limit_concurrency=settings.connections,
            timeout_graceful_shutdown=int(settings.drain_seconds) + 5,
        )
        super().__init__(config)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more; let what runs end, or fail it when its time is up."""
        self.serving.stopping = True
        logging.getLogger("fourfold.server").info("stopping: %d answers in the making", len(self.serving.live))
        timer = asyncio.get_running_loop().call_later(self.settings.drain_seconds, self.serving.stop)
        await super().shutdown(sockets)
        timer.cancel()
