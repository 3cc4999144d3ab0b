"""Answers on their way to a client: events as they come, or the whole; given up as soon as nobody reads them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from fastapi import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from fourfold.server.asking import Reply
from fourfold.server.errors import ApiError, api_error
from fourfold.server.settings import Settings
from fourfold.text.chats import Event

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
MOST_UNREAD = 8192  # pieces of one answer, some MB, that may wait for a client that reads slower than the engine writes
BOUND_SECONDS = 0.5  # between looks at how much waits
COMMENT = b": keep-alive\n\n"


def data(value: dict[str, Any]) -> bytes:
    """One event without a name."""
    return b"data: " + _json(value) + b"\n\n"


def event(name: str, value: dict[str, Any]) -> bytes:
    """One event with a name."""
    return b"event: " + name.encode() + b"\n" + data(value)


def failed(error: ApiError) -> bytes:
    """How a stream of OpenAI's form says that something went wrong."""
    return data(error.body()) + DONE


class EventStream(Response):
    """Server-sent events. Ends the replies behind it when the client goes, leaves what was sent unread for `write_seconds`, or
    falls MOST_UNREAD pieces behind.

    `failed` says an error in the API's own form, once the stream has begun. Comments keep the connection alive while nothing comes.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncIterator[bytes],
        settings: Settings,
        replies: Sequence[Reply],
        failed: Callable[[ApiError], bytes] = failed,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self.events, self.settings, self.replies, self.failed = events, settings, replies, failed
        self._written, self._blocked = time.monotonic(), 0  # writes that wait for room

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        tasks = [asyncio.ensure_future(work) for work in (self._speak(send), self._stay(send), self._bound(), gone(receive))]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except TimeoutError:
            pass  # the client reads no more
        finally:
            for task in tasks:
                task.cancel()
            for reply in self.replies:
                reply.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _speak(self, send: Send) -> None:
        await self._write(send, {"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        try:
            async for chunk in self.events:
                await self._say(send, chunk)
        except TimeoutError:
            raise
        except Exception as error:
            await self._say(send, self.failed(api_error(error)))
            if not isinstance(error, ApiError):
                raise
        await self._write(send, {"type": "http.response.body", "body": b""})

    async def _stay(self, send: Send) -> None:
        """Say something now and then."""
        while True:
            await asyncio.sleep(self.settings.keep_alive_seconds / 2)
            if time.monotonic() - self._written > self.settings.keep_alive_seconds / 2:
                await self._say(send, COMMENT)

    async def _bound(self) -> None:
        """Raises TimeoutError when too much waits for a client that does not read."""
        while not self._blocked or all(reply.stream.unread <= MOST_UNREAD for reply in self.replies):
            await asyncio.sleep(BOUND_SECONDS)
        raise TimeoutError

    async def _say(self, send: Send, chunk: bytes) -> None:
        await self._write(send, {"type": "http.response.body", "body": chunk, "more_body": True})

    async def _write(self, send: Send, message: Message) -> None:
        """Wait until there is room to write. Raises TimeoutError when the client makes none."""
        self._blocked += 1
        try:
            async with asyncio.timeout(self.settings.write_seconds):
                await send(message)
        finally:
            self._blocked -= 1
        self._written = time.monotonic()


class JSON(Response):
    """A whole answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return _json(content)


async def watched(request: Request, work: Awaitable[T]) -> T:
    """The result of some work, which is cancelled when the client goes away (ApiError 499, which nobody reads)."""
    task, left = asyncio.ensure_future(work), asyncio.ensure_future(gone(request.receive))
    try:
        await asyncio.wait({task, left}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client has gone")
        return task.result()
    finally:
        left.cancel()
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def whole(request: Request, replies: Sequence[Reply]) -> list[list[Event]]:
    """All events of each reply; replies are cancelled when the client goes away, or one of them fails."""

    async def collected(reply: Reply) -> list[Event]:
        return [event async for event in reply]

    try:
        return await watched(request, asyncio.gather(*map(collected, replies)))
    finally:
        for reply in replies:
            reply.cancel()


async def gone(receive: Receive) -> None:
    """Wait until the client has gone; the body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _json(value: Any) -> bytes:
    # Lone surrogates, which a model may make of broken escapes, are no UTF-8.
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")
