"""Names that another OpenAI-compatible server answers to: the request goes there as it came, the answer comes back as it comes."""

import asyncio
import json
import os
import re
from typing import Any

import httpx
from fastapi import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from fourfold.server.billing import Bill, Repeated, open_bill, origin_of
from fourfold.server.counting import Count
from fourfold.server.errors import ApiError, api_error
from fourfold.server.idempotency import response_of
from fourfold.server.models import Serving, Upstream
from fourfold.server.settings import Remote
from fourfold.server.sse import gone

PATHS = re.compile(r"/v1(/[a-z_]{1,30}){1,3}")  # where requests are passed on to: nothing that climbs, or ends the path


class PassThrough:
    """Middleware: forwards what names an upstream's model. Other fields are for the other server to judge."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app, self.serving = app, serving
        self.names = {name for name in serving.models.names() if isinstance(serving.models.get(name), Upstream)}
        self.client = httpx.AsyncClient(follow_redirects=False, trust_env=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            async with self.client:  # closed when the server stops
                return await self.app(scope, receive, send)
        asked = _asked(scope) if self.names and scope["type"] == "http" else {}
        name = asked.get("model")
        if not isinstance(name, str) or name not in self.names:
            return await self.app(scope, receive, send)
        try:
            await self._pass_on(scope, receive, send, asked)
        except Repeated as done:
            await response_of(done.replay)(scope, receive, send)
        except ApiError as error:
            await self.serving.refuse(error, scope["path"])(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send, asked: dict[str, Any]) -> None:
        upstream = self.serving.models.get(asked["model"])
        assert isinstance(upstream, Upstream)
        try:
            bill = await open_bill(self.serving.ledger, origin_of(Request(scope)), upstream.name, 1)
        except Exception as error:
            raise api_error(error) from error
        await receive()  # the body, which is known
        started = asyncio.Event()
        tasks = [
            asyncio.ensure_future(self._exchange(upstream, scope, send, asked, bill, started)),
            asyncio.ensure_future(gone(receive)),
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        except httpx.HTTPError as error:
            if started.is_set():
                raise  # the connection is dropped, so that the client knows the answer is not whole
            raise _mapped(error, upstream) from error
        except TimeoutError:
            pass  # the client reads no more
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _exchange(
        self, upstream: Upstream, scope: Scope, send: Send, asked: dict[str, Any], bill: Bill, started: asyncio.Event
    ) -> None:
        remote = upstream.remote
        url = remote.base_url.rstrip("/") + scope["path"].removeprefix("/v1")
        times = httpx.Timeout(remote.read_seconds, connect=remote.connect_seconds)
        body = json.dumps(asked | {"model": remote.model or upstream.name}).encode()
        async with self.client.stream("POST", url, content=body, headers=_headers(remote), timeout=times) as answer:
            if answer.status_code in (401, 403) or answer.status_code >= 500:
                raise ApiError(502, f"model: the server behind {upstream.name} answered with status {answer.status_code}")
            kind = answer.headers.get("content-type", "application/json")
            headers = [(b"content-type", kind.encode()), (b"cache-control", b"no-cache")]
            started.set()
            await send({"type": "http.response.start", "status": answer.status_code, "headers": headers})
            count, refused = Count(upstream.name, asked, kind.startswith("text/event-stream")), answer.status_code >= 400
            try:
                async for chunk in answer.aiter_bytes():
                    count.add(chunk)
                    async with asyncio.timeout(self.serving.settings.write_seconds):
                        await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except (asyncio.CancelledError, TimeoutError):  # the client has gone, and what came until then was made for it
                if not refused:
                    bill.count(count.tokens(whole=False), whole=False)
                raise
            if not refused:  # else it may be tried again
                bill.count(count.tokens(whole=True), whole=True)
            await send({"type": "http.response.body", "body": b""})


def _asked(scope: Scope) -> dict[str, Any]:
    """The body of a POST, if it is an object."""
    if scope["method"] != "POST" or not PATHS.fullmatch(scope["path"]):
        return {}
    try:
        asked = json.loads(scope["state"]["body"])
    except (ValueError, RecursionError):
        return {}
    return asked if isinstance(asked, dict) else {}


def _headers(remote: Remote) -> dict[str, str]:
    key = os.environ.get(remote.key_env, "") if remote.key_env else ""
    return {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})


def _mapped(error: httpx.HTTPError, upstream: Upstream) -> ApiError:
    if isinstance(error, httpx.TimeoutException):
        return ApiError(504, f"model: the server behind {upstream.name} took too long; try again later")
    return ApiError(502, f"model: the server behind {upstream.name} cannot be reached; try again later")
