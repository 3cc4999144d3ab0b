"""Bodies within bounds: read whole before anything is done with them, in bytes and in time."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import h11
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from fourfold.server.errors import ApiError
from fourfold.server.models import Serving


class Bodies:
    """Middleware: refuses a body of too many bytes (413) or one that takes too long (408); gives every request an id."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app, self.serving, self.settings = app, serving, serving.settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        name = f"req_{secrets.token_hex(12)}"

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        try:
            async with asyncio.timeout(self.settings.body_seconds):
                body = await self._read(scope, receive)
        except TimeoutError:
            error = ApiError(408, f"body: took more than {self.settings.body_seconds:g} s to arrive; send it faster")
        except ApiError as refused:
            error = refused
        else:
            if body is None:
                return  # the client went away
            scope.setdefault("state", {})["body"] = body
            return await self.app(scope, _replayed(body, receive), named)
        error.headers["connection"] = "close"
        await self.serving.refuse(error, scope["path"])(scope, receive, named)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        most, length = self.settings.body_bytes, Headers(scope=scope).get("content-length", "")
        too_large = ApiError(413, f"body: has more than {most:,} bytes; send less, or raise the setting body_bytes")
        if length.isdigit() and int(length) > most:
            raise too_large
        parts, size, more = list[bytes](), 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            parts.append(message.get("body", b""))
            size, more = size + len(parts[-1]), message.get("more_body", False)
            if size > most:
                raise too_large
        return b"".join(parts)


def _replayed(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """A `receive` that gives the whole body first, then whatever comes (that the client goes away)."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def patient(seconds: float) -> type[H11Protocol]:
    """uvicorn's protocol, dropping connections on which no whole request head arrives within so many seconds."""

    class Patient(H11Protocol):
        clock: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._stop()

        def _watch(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self._stop()
            elif self.clock is None:
                self.clock = self.loop.call_later(seconds, self.transport.close)

        def _stop(self) -> None:
            if self.clock is not None:
                self.clock.cancel()
                self.clock = None

    return Patient
