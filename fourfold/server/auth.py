"""Who may ask: keys as `Authorization: Bearer KEY` or `x-api-key: KEY`, known by their digests.

Where no key was ever made the server is open to whoever reaches it, which it lets be only this machine (`check_exposure`).
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fourfold.errors import ConfigError
from fourfold.server.errors import ApiError
from fourfold.server.keys import Key, digest
from fourfold.server.ledger import Ledger
from fourfold.server.models import Serving
from fourfold.server.settings import Settings

PUBLIC = ("/", "/health", "/favicon.ico", "/openapi.json")  # and the files of the page


class Auth:
    """Middleware: puts the Key of a request into its state (None where it needs none, or has one of the settings), and a name
    for its holder; or answers 401.
    """

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app, self.serving = app, serving
        # By what it is, not by its place: the list may be changed before the next start, and the ledger remembers.
        self.digests = {found: f"settings-{found[:16]}" for found in map(digest, serving.settings.api_keys)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        headers, state = Headers(scope=scope), scope.setdefault("state", {})
        state |= {"key": None, "holder": ""}
        try:
            if scope["path"] not in PUBLIC and not scope["path"].startswith("/page/"):
                state["key"], state["holder"] = await self._key(headers)
        except ApiError as error:
            return await self.serving.refuse(error, scope["path"])(scope, receive, send)
        await self.app(scope, receive, send)

    async def _key(self, headers: Headers) -> tuple[Key | None, str]:
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        secret = (bearer.strip() if scheme.lower() == "bearer" else "") or headers.get("x-api-key", "")
        if secret and (known := self.digests.get(digest(secret))):
            return None, known
        key, needed = await run_in_threadpool(self._look_up, secret)
        if needed and key is None:
            said = "this API key is not known" if secret else "an API key is needed"
            remedy = "send it as `Authorization: Bearer KEY`; `fourfold serve keys add NAME` makes one"
            raise ApiError(401, f"{said}; {remedy}", code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"})
        if not needed and not self.serving.settings.is_public:
            self._check_local(headers)
        return key, f"key-{key.id}" if key else ""

    def _check_local(self, headers: Headers) -> None:
        """Raise ApiError (403) for what a page from elsewhere has a browser on this machine ask."""
        if not is_local(headers.get("host", "")):
            # A name that was made to lead here: the browser would let the page read what we say.
            raise ApiError(403, "host: without API keys only requests to localhost or an address are answered; make a key")
        origin, allowed = headers.get("origin"), self.serving.settings.cors
        if origin is None or "*" in allowed or origin in allowed:
            return
        host = urlsplit(origin).netloc
        if not host or not is_local(host):  # it could not read the answer, but have us work
            raise ApiError(
                403, "origin: without API keys only pages of this machine may ask; allow it by the setting cors, or make a key"
            )

    def _look_up(self, secret: str) -> tuple[Key | None, bool]:
        """The key behind a secret, and whether one is needed."""
        ledger = self.serving.ledger
        key = ledger.find_key(secret) if ledger is not None and secret else None
        return key, key is None and needs_key(self.serving.settings, ledger)


def needs_key(settings: Settings, ledger: Ledger | None) -> bool:
    """Whether keys were made."""
    return bool(settings.api_keys) or (ledger is not None and ledger.has_keys())


def check_exposure(settings: Settings, ledger: Ledger | None) -> None:
    """Raise ConfigError where a server without keys would be open to other machines, unless that was asked for."""
    if settings.is_public and not needs_key(settings, ledger) and not settings.public_without_keys:
        remedy = "make a key (`fourfold serve keys add NAME`), or allow it (--public-without-keys)"
        raise ConfigError(f"host: {settings.host} lets other machines in, and there are no API keys; {remedy}")


def is_local(host: str) -> bool:
    """Whether a Host header is an address or localhost, which no DNS answer can point elsewhere."""
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() and not host.endswith("]") else host
    if name in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True
