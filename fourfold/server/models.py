"""What a server serves: models by name, names passed on to other servers, and what all handlers share."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from fastapi import Request, Response

from fourfold.engine.engine import Engine
from fourfold.errors import ConfigError, DataError
from fourfold.model.transformer import Transformer
from fourfold.server.errors import ApiError, NotFound, error_response
from fourfold.server.settings import Remote, Settings
from fourfold.server.shelf import Shelf
from fourfold.text.chats import ChatFormat, choose
from fourfold.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fourfold.server.ledger import Ledger
    from fourfold.server.metrics import Metrics


@dataclass(frozen=True)
class Served:
    """A model under one name. thinking: settled by an alias, or None where the request says; context: tokens.

    can: which of image, audio, video (to be shown), draw, film (to be made), tools, thinking.
    """

    name: str
    model: Transformer
    engine: Engine
    chat: ChatFormat | None
    context: int
    can: frozenset[str]
    thinking: bool | None = None
    created: int = field(default_factory=lambda: int(time.time()))
    root: str = ""  # the name of the model itself

    @property
    def tokenizer(self) -> Tokenizer:
        return self.model.tokenizer

    @property
    def usual(self) -> Mapping[str, float]:
        """How its folder would have answers drawn, where a request does not say."""
        return self.tokenizer.settings.sampling

    def speaker(self) -> ChatFormat:
        """Its chat format. Raises ApiError for a model that has none."""
        if self.chat is None:
            raise ApiError(400, f"model: {self.name} has no chat format; send its prompt to /v1/completions", param="model")
        return self.chat


@dataclass(frozen=True)
class Upstream:
    """A name that another server answers to."""

    name: str
    remote: Remote
    created: int = field(default_factory=lambda: int(time.time()))


class Models:
    """Everything there is by name. A model M that thinks is also M-chat (it does not) and M-reasoner (it does)."""

    def __init__(self, models: list[Served], settings: Settings) -> None:
        self._named: dict[str, Served | Upstream] = {}
        for served in models:
            self._add(served.name, served)
        self.first = models[0].name if models else next(iter(settings.upstreams), None)
        for served in models:
            if served.chat is not None:
                self._add(f"{served.name}-chat", replace(served, name=f"{served.name}-chat", thinking=False))
            if "thinking" in served.can:
                self._add(f"{served.name}-reasoner", replace(served, name=f"{served.name}-reasoner", thinking=True))
        for name, remote in settings.upstreams.items():
            self._add(name, Upstream(name, remote))
        for name, alias in settings.aliases.items():
            target = self._named.get(alias.model)
            if target is None:
                raise ConfigError(f"aliases.{name}.model: {alias.model} is not served; name one of {', '.join(self._named)}")
            fixed = {} if alias.thinking is None or isinstance(target, Upstream) else {"thinking": alias.thinking}
            self._add(name, replace(target, name=name, **fixed))

    def _add(self, name: str, target: Served | Upstream) -> None:
        if name in self._named:
            raise ConfigError(f"{name}: two models have this name; serve one as NAME=FOLDER")
        self._named[name] = target

    def get(self, name: str) -> Served | Upstream:
        """What has this name. Raises NotFound, which lists what there is."""
        if name not in self._named:
            raise NotFound(
                f"model: {name[:100]} is not served here; choose one of {', '.join(self._named)}", "model", "model_not_found"
            )
        return self._named[name]

    def served(self, name: str) -> Served:
        """`get` of a model that runs here. Raises NotFound, and ApiError for one that another server answers to."""
        found = self.get(name)
        if isinstance(found, Upstream):
            raise ApiError(400, f"model: {name} runs on another server, which this endpoint does not reach", param="model")
        return found

    def names(self) -> list[str]:
        """All names: models, their variants, upstreams, aliases."""
        return list(self._named)

    def own(self) -> list[Served]:
        """Each model that runs here once, under the name of its own."""
        return [each for name, each in self._named.items() if isinstance(each, Served) and name == each.root]


class Cancels(Protocol):
    """Something in the making that can be ended early."""

    def cancel(self, error: ApiError | None = None) -> None: ...


@dataclass
class Serving:
    """What handlers get at through `serving_of(request)`."""

    models: Models
    settings: Settings
    ledger: "Ledger | None" = None
    metrics: "Metrics | None" = None
    live: set[Cancels] = field(default_factory=set)  # replies in the making
    stopping: bool = False
    responses: Shelf[Any] = field(default_factory=lambda: Shelf("response", most=1000, most_bytes=256 << 20))
    videos: Shelf[Any] = field(
        default_factory=lambda: Shelf("video", most=100, most_bytes=256 << 20, busy=lambda job: job.is_going)
    )

    def refuse(self, error: ApiError, path: str) -> Response:
        """An error as a response, counted."""
        if self.metrics is not None:
            self.metrics.refused(error.status, error.code or error.type)
        return error_response(error, path)

    def stop(self) -> None:
        """Fail all replies in the making: the server's time is up."""
        self.stopping = True
        for reply in list(self.live):
            reply.cancel(ApiError(503, "the server is stopping; ask again later", code="stopping"))


def serving_of(request: Request) -> Serving:
    return request.app.state.serving


def serve(model: Transformer, name: str, engine: Engine, chat: ChatFormat | None = None) -> Served:
    """A model to be served; its chat format is found where its folder tells which."""
    if chat is None:
        try:
            chat = choose(model.tokenizer)
        except DataError:
            chat = None
    return Served(name, model, engine, chat, model.config.max_position_embeddings, abilities(model, chat), root=name)


def abilities(model: Transformer, chat: ChatFormat | None) -> frozenset[str]:
    """See `Served.can`."""
    config: Any = model.config
    found = set()
    if chat is not None:
        found |= {"tools"} if chat.has_tools else set()
        found |= {"thinking"} if chat.think in model.tokenizer.controls else set()
        if chat.has_media and config.media_in is not None:
            found |= {"image", "video", "audio"}
        if chat.has_media and config.media_out is not None and getattr(model, "codec", None) is not None:
            found |= {"draw"} | ({"film"} if config.media_out.film_grid else set())
    return frozenset(found)
