"""One HTTP request in the ledger: charged for what its answers took, and its answer kept for a repeated Idempotency-Key.

`submit` (asking.py) opens a bill before anything is asked of the engine. The middleware closes it when the response is whole,
before its last bytes go out, so that an answer which somebody has is always charged; when the client goes away, for what was made
until then.
"""

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fourfold.engine.request import Usage
from fourfold.errors import FourfoldError
from fourfold.server.idempotency import Recorder, Replay, StoredAnswer, request_digest
from fourfold.server.tables import CANCELLED, FAILED, FINISHED

if TYPE_CHECKING:
    from fourfold.server.asking import Reply
    from fourfold.server.ledger import Charge, Ledger


class Repeated(Exception):
    """The request was done before; `replay` is its answer."""

    def __init__(self, replay: Replay) -> None:
        super().__init__("done before")
        self.replay = replay


@dataclass(frozen=True)
class Origin:
    """Who asks, and by which door. holder: a name for the key, empty where none is needed; namespace: within which prefixes are
    shared; bills: those that the response closes.
    """

    endpoint: str
    key_id: int | None = None
    holder: str = ""
    namespace: str = ""
    idempotency_key: str | None = None
    digest: str | None = None
    bills: "list[Bill] | None" = None

    def background(self) -> "Origin":
        """The same for work that goes on after the response: its bill is closed with its last answer."""
        return replace(self, bills=None, idempotency_key=None, digest=None)


def origin_of(request: Request, user_id: str | None = None) -> Origin:
    """The origin of an HTTP request; `user_id` keeps the prefixes of one user of a key from those of others."""
    key, endpoint = getattr(request.state, "key", None), request.url.path
    repeat = request.headers.get("idempotency-key")
    digest = request_digest(endpoint, request.state.body) if repeat is not None else None
    namespace = f"{request.state.holder}/{user_id or ''}"
    return Origin(endpoint, key.id if key else None, request.state.holder, namespace, repeat, digest, request.state.bills)


class Bill:
    """What one request is charged: its replies, `answers` to each prompt, one prompt after the other."""

    def __init__(self, origin: Origin, charge: "Charge | None", answers: int) -> None:
        self.origin, self.charge, self.answers = origin, charge, answers
        self.replies: list[Reply] = []
        self.counted: tuple[int, int, int] | None = None  # tokens, where another server made the answer: see `count`
        self._open, self._is_noted, self._is_counted_whole = 0, False, False
        self._tasks = set[asyncio.Task[None]]()
        if origin.bills is not None:
            origin.bills.append(self)

    def add(self, reply: "Reply") -> None:
        self.replies.append(reply)
        self._open += 1

    def close(self) -> None:
        """One of its replies is over."""
        self._open -= 1
        if not self._open:
            self.drop()

    def drop(self) -> None:
        """Nothing more comes: finish it, unless that is for the response to do."""
        if self.origin.bills is None:
            self._work(self.finish(None))

    def begin(self) -> None:
        """One of its replies has begun. With the first of each prompt, what all prompts took is known, and is written down."""
        if self.charge is not None and not self._is_noted and all(reply.begun for reply in self.replies[:: self.answers]):
            self._is_noted = True
            self._work(self._note(self.charge))

    def count(self, tokens: tuple[int, int, int], whole: bool) -> None:
        """What an answer of another server took, as `tokens` has it; `whole` unless the client left before its end."""
        self.counted, self._is_counted_whole = tokens, whole

    def tokens(self) -> tuple[int, int, int]:
        """Of prompts, found in the prefix store and not, and of answers."""
        if self.counted is not None:
            return self.counted
        asked: list[Usage] = [reply.usage for reply in self.replies[:: self.answers]]
        hit = sum(usage.cached_tokens for usage in asked)
        return hit, sum(usage.prompt_tokens for usage in asked) - hit, sum(reply.made for reply in self.replies)

    async def _note(self, charge: "Charge") -> None:
        hit, miss, _ = self.tokens()
        with suppress(FourfoldError):  # it is for a crash alone; `finish` says it again
            await run_in_threadpool(charge.known, hit, miss)

    def _work(self, work: Coroutine[Any, Any, None]) -> None:
        """Have something done while nobody waits."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def price(self) -> dict[str, Any]:
        """The cost as of now, in whole units, and of which currency; None without a ledger."""
        cost = None if self.charge is None else self.charge.cost(*self.tokens())
        return {"cost": cost and float(cost.amount), "currency": cost and cost.currency}

    def is_whole(self) -> bool:
        """Whether all that was asked for is made."""
        if self.counted is not None:
            return self._is_counted_whole
        return bool(self.replies) and all(reply.finish_reason is not None for reply in self.replies)

    async def finish(self, answer: StoredAnswer | None) -> None:
        """Settle it: charged unless the server failed; later calls change nothing."""
        if self.charge is None:
            return
        failed = not (self.replies or self.counted) or any(
            reply.error is not None and reply.error.status >= 500 for reply in self.replies
        )
        status = FAILED if failed else FINISHED if self.is_whole() else CANCELLED
        await run_in_threadpool(self.charge.finish, *self.tokens(), status, answer if status == FINISHED else None)


async def open_bill(ledger: "Ledger | None", origin: Origin, model: str, answers: int) -> Bill:
    """Begin a charge. Raises Repeated where the request was done before, and what the ledger refuses."""
    if ledger is None:
        return Bill(origin, None, answers)
    asked = (origin.key_id, model, origin.endpoint, origin.idempotency_key, origin.digest, origin.holder)
    work = asyncio.ensure_future(run_in_threadpool(ledger.begin, *asked))
    try:
        begun = await asyncio.shield(work)
    except asyncio.CancelledError:  # the client has gone, and what is begun all the same would stay open
        work.add_done_callback(_give_up)
        raise
    if isinstance(begun, Replay):
        raise Repeated(begun)
    return Bill(origin, begun, answers)


def _give_up(begun: "asyncio.Future[Charge | Replay]") -> None:
    """Close a charge that nobody waits for any more."""
    if not begun.cancelled() and begun.exception() is None and not isinstance(charge := begun.result(), Replay):
        asyncio.get_running_loop().run_in_executor(None, charge.finish, 0, 0, 0, FAILED)


class Billing:
    """Middleware: closes the bills of a request before the last bytes of its response."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        bills: list[Bill] = []
        scope.setdefault("state", {})["bills"] = bills
        recorder, start = Recorder(), dict[str, Any]()

        async def metered(message: Message) -> None:
            if not bills:
                return await send(message)
            if message["type"] == "http.response.start":
                start.update(message)
            elif message["type"] == "http.response.body":
                recorder.add(message.get("body", b""))
                last = not message.get("more_body", False)
                # Only for an answer that may be repeated has the end of the response to be waited for.
                if last or all(bill.origin.idempotency_key is None and bill.is_whole() for bill in bills):
                    await settle(_stored(recorder, start) if last else None)
            await send(message)

        async def settle(answer: StoredAnswer | None) -> None:
            for bill in list(bills):
                await bill.finish(answer)
                if bill in bills:  # only now: should this be cut off, the next call tries again
                    bills.remove(bill)

        try:
            await self.app(scope, receive, metered)
        finally:
            await asyncio.shield(settle(None))


def _stored(recorder: Recorder, start: dict[str, Any]) -> StoredAnswer | None:
    headers = {name.decode().lower(): value.decode() for name, value in start.get("headers", [])}
    code = start.get("status", 500)
    return recorder.answer(code, headers.get("content-type", "application/json")) if code < 400 else None
