"""What chat, responses and messages share: a question put to the engine, and its answers as events."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fourfold.engine.canvas import Drawing
from fourfold.engine.engine import Engine, Stream
from fourfold.engine.prompts import prompt_of
from fourfold.engine.request import Chosen, EngineBusy, Piece, Request, Usage
from fourfold.engine.sampler import Sampling
from fourfold.media.limits import Limits
from fourfold.server.billing import Bill, Origin, open_bill
from fourfold.server.errors import ApiError, api_error, bad
from fourfold.server.media import limits_of
from fourfold.server.models import Served, Serving
from fourfold.server.settings import Settings
from fourfold.server.tools import constraint_of, thoughts_of
from fourfold.text.chats import CallFinished, ChatFormat, Content, Event, Reasoning

Say = Callable[[Piece], list[Event]]  # what one piece of an answer tells


@dataclass
class Ask:
    """A question in our own form.

    messages: OpenAI's roles, content as text/content.py has it; thinking: None where the request does not say; n: answers wanted;
    logprobs: how many likeliest tokens to report beside each one (None: nothing, 0: its own alone).
    """

    messages: list[dict[str, Any]]
    origin: Origin
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel: bool = True  # more than one call in an answer
    response_format: dict[str, Any] | None = None
    thinking: bool | None = None
    effort: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    drawing: Drawing | None = None  # None: the model may draw if it can
    n: int = 1
    logprobs: int | None = None


class Reply:
    """One answer while it is made: `async for event in reply`, and all else when that is over.

    finish_reason: "stop", "length" or "tool_calls"; tokens and their log-probabilities, those of thoughts apart; a failure of the
    engine is raised from the iteration as ApiError.
    """

    def __init__(self, serving: Serving, served: Served, stream: Stream, say: Say, opened: bool, bill: Bill) -> None:
        self.stream, self.usage = stream, stream.usage
        self.finish_reason: str | None = None
        self.reasoning_tokens = 0
        self.tokens: list[int] = []
        self.logprobs: list[Chosen] = []
        self.reasoning_logprobs: list[Chosen] = []
        self.begun = False  # its first piece has come
        self.is_wanted = True  # False: only its prompt was to be scored, and the one token that the engine makes does not count
        self.seconds = 0.0  # from being asked to the last piece
        self.error: ApiError | None = None
        self._serving, self._served, self._say, self._thinking, self.bill = serving, served, say, opened, bill
        self._thought = self._answered = self._called = False
        self._began = time.monotonic()
        serving.live.add(self)
        bill.add(self)

    usage: Usage

    @property
    def made(self) -> int:
        """Tokens of the answer so far that are counted and charged."""
        return self.usage.completion_tokens if self.is_wanted else 0

    @property
    def prompt_logprobs(self) -> list[Chosen] | None:
        """Of the tokens of the prompt, where they were asked for; whole when the first event comes."""
        return self.stream.prompt_logprobs

    def __aiter__(self) -> AsyncIterator[Event]:
        return self._events()

    async def _events(self) -> AsyncIterator[Event]:
        try:
            async for piece in self.stream:
                if not self.begun:
                    self.begun = True
                    self.bill.begin()
                for event in self._told(piece):
                    yield event
                if piece.finish_reason == "cancelled":
                    raise self.error or ApiError(499, "the client has gone")
                if piece.finish_reason is not None:
                    self.finish_reason = "tool_calls" if self._called and piece.finish_reason == "stop" else piece.finish_reason
        except Exception as error:
            self.error = api_error(error)
            raise self.error from error
        finally:
            self._close()

    def _told(self, piece: Piece) -> Iterator[Event]:
        """The events of one piece, its tokens counted as thoughts or answer."""
        events = self._say(piece)
        for event in events:
            self._thinking = isinstance(event, Reasoning)
            self._thought |= self._thinking
            self._called |= isinstance(event, CallFinished)
        self.tokens += piece.tokens
        self.reasoning_tokens += len(piece.tokens) if self._thinking else 0
        (self.reasoning_logprobs if self._thinking else self.logprobs).extend(piece.logprobs)
        yield from filter(None, map(self._shorn, events))

    def _shorn(self, event: Event) -> Event | None:
        """Without the line ends between thoughts and answer."""
        if not isinstance(event, Content) or self._answered or not self._thought:
            return event
        text = event.text.lstrip("\n")
        self._answered = bool(text)
        return Content(text) if text else None

    def cancel(self, error: ApiError | None = None) -> None:
        """End it before the engine's next step; `error` is raised where it is still read."""
        self.error = self.error or error
        self.stream.cancel()
        if error is None:
            self._close()

    def _close(self) -> None:
        if self in self._serving.live:
            self._serving.live.discard(self)
            self.seconds = time.monotonic() - self._began
            if self.finish_reason is None:
                self.stream.cancel()
            if (metrics := self._serving.metrics) is not None:
                reason = self.finish_reason or ("cancelled" if self.error is None or self.error.status < 500 else "error")
                metrics.answered(self._served.root, self.bill.origin.endpoint, self.usage, reason, self.seconds)
            self.bill.close()


async def begin(serving: Serving, served: Served, ask: Ask) -> list[Reply]:
    """Render the prompt and submit `ask.n` requests. Raises ApiError, and the library's errors where a field is wrong."""
    chat, thinking = served.speaker(), thinks(served, ask)
    limits = limits_of(serving.settings)
    requests, opened = await asyncio.to_thread(_requests, served, ask, chat, thinking, limits)
    return await submit(serving, served, requests, ask.origin, chat, opened, ask.n)


async def submit(
    serving: Serving,
    served: Served,
    requests: list[Request],
    origin: Origin,
    chat: ChatFormat | None = None,
    opened: bool = False,
    answers: int = 1,
) -> list[Reply]:
    """Submit what is asked in one HTTP request: `answers` of each prompt, one after the other. Without `chat` all is Content.

    The first has to find room in the queue (else 429); others wait for theirs.
    """
    if serving.stopping:
        raise ApiError(503, "the server is stopping; ask again later", code="stopping")
    if len(requests) > serving.settings.most_answers:
        raise ApiError(400, f"{len(requests)} answers in one request are more than {serving.settings.most_answers}; ask for fewer")
    bill, replies = await open_bill(serving.ledger, origin, served.root, answers), list[Reply]()
    try:
        for request in requests:
            stream = await _submitted(served.engine, request, wait=bool(replies))
            replies.append(Reply(serving, served, stream, _reader(served, chat, opened), opened, bill))
    except BaseException:
        for reply in replies:
            reply.cancel()
        if not replies:
            bill.drop()
        raise
    return replies


async def _submitted(engine: Engine, request: Request, wait: bool) -> Stream:
    while True:
        try:
            return engine.submit(request)
        except EngineBusy:
            if not wait:
                raise
        await asyncio.sleep(0.05)


def thinks(served: Served, ask: Ask) -> bool:
    """Whether the model is to think: as its name settles it, else as asked, else not. Raises ApiError where the two differ."""
    asked = ask.thinking if ask.thinking is not None else None if ask.effort is None else ask.effort != "none"
    if served.thinking is not None and asked not in (None, served.thinking):
        never = "always" if served.thinking else "never"
        raise bad("thinking", f"{served.name} {never} thinks; ask {served.root}, or leave this field out")
    return bool(asked if served.thinking is None else served.thinking)


def _requests(served: Served, ask: Ask, chat: ChatFormat, thinking: bool, limits: Limits) -> tuple[list[Request], bool]:
    """The engine's requests, each with a seed and a constraint of its own, and whether the prompt ends in open thoughts."""
    prompt, opened = prompt_of(
        served.model,
        ask.messages,
        chat,
        limits,
        tools=ask.tools if ask.tool_choice != "none" else None,
        thinking=thinking,
        reasoning_effort=ask.effort,
        response_format=ask.response_format,
    )
    drawing = ask.drawing or Drawing(begin="draw" in served.can)

    asked = ask.tools, ask.tool_choice, ask.response_format, opened
    bound = constraint_of(chat, served.tokenizer, *asked, parallel=ask.parallel, thinking=thinking, begun=_begun(ask.messages))
    after, opening = thoughts_of(chat, served.tokenizer, opened, thinking)
    told: dict[str, Any] = {"logprobs": ask.logprobs, "namespace": ask.origin.namespace, "after": after, "opening": opening}
    return [Request(prompt, seeded(ask.sampling, i), drawing, bound and bound.copy(), **told) for i in range(ask.n)], opened


def _begun(messages: list[dict[str, Any]]) -> str:
    """What the prompt holds of the answer already: the text of a last message that is to be continued."""
    last = messages[-1] if messages and messages[-1].get("prefix") else {}
    said = last.get("content") or ""
    return said if isinstance(said, str) else "".join(part.get("text", "") for part in said)


def seeded(sampling: Sampling, place: int) -> Sampling:
    """Sampling of the answer at a place among several to one prompt."""
    return sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + place)


def sampling_of(
    settings: Settings, usual: Mapping[str, float], tokens: int | None, field: str = "max_tokens", **given: Any
) -> Sampling:
    """Sampling from what a request gives, None standing for what is `usual` with the model, else the API's temperature of 1.

    `field` names the one that holds the most tokens of the answer. Raises ConfigError for a value out of range.
    """
    if tokens is not None and settings.most_tokens is not None and tokens > settings.most_tokens:
        raise bad(field, f"is {tokens}; this server gives at most {settings.most_tokens}")
    most = tokens if tokens is not None else min(settings.answer_tokens, settings.most_tokens or settings.answer_tokens)
    return Sampling(**{"temperature": 1.0, **usual, **{k: v for k, v in given.items() if v is not None}, "max_tokens": most})


def _reader(served: Served, chat: ChatFormat | None, opened: bool) -> Say:
    if chat is None:
        return lambda piece: ([Content(piece.text)] if piece.text else []) + ([piece.drawing] if piece.drawing else [])
    inbox: deque[Piece] = deque()
    read = chat.read(iter(inbox.popleft, None), served.tokenizer, opened)

    def say(piece: Piece) -> list[Event]:
        inbox.append(piece)
        return next(read)[1]

    return say


OURS = "prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "timing", "cost", "currency"  # in `usage`, beside what others have


def usage_of(replies: list[Reply], answers: int = 1) -> dict[str, Any]:
    """`usage` in OpenAI's form, with the hits and misses of the prefix store; prompts count once however many answers they get."""
    asked = [reply.usage for reply in replies[::answers]]
    prompt, hit = sum(usage.prompt_tokens for usage in asked), sum(usage.cached_tokens for usage in asked)
    said = sum(reply.made for reply in replies)
    firsts = [s for reply in replies if (s := reply.usage.first_token_seconds) is not None]
    return {
        "prompt_tokens": prompt,
        "completion_tokens": said,
        "total_tokens": prompt + said,
        "prompt_cache_hit_tokens": hit,
        "prompt_cache_miss_tokens": prompt - hit,
        "prompt_tokens_details": {"cached_tokens": hit},
        "completion_tokens_details": {"reasoning_tokens": sum(reply.reasoning_tokens for reply in replies)},
        "timing": {
            "queue_seconds": max(reply.usage.queued_seconds for reply in replies),
            "first_token_seconds": min(firsts, default=None),
            "seconds": max(reply.seconds for reply in replies),
        },
        **replies[0].bill.price(),
    }


async def merged(replies: list[Reply]) -> AsyncIterator[tuple[int, Event | None]]:
    """Events of several replies as they come, with the place of the reply; None when one is over."""
    if len(replies) == 1:
        async for event in replies[0]:
            yield 0, event
        yield 0, None
        return
    queue: asyncio.Queue[tuple[int, Event | None] | ApiError] = asyncio.Queue(64)
    tasks = [asyncio.create_task(_follow(place, reply, queue)) for place, reply in enumerate(replies)]
    try:
        left = len(replies)
        while left:
            item = await queue.get()
            if isinstance(item, ApiError):
                raise item
            yield item
            left -= item[1] is None
    finally:
        for task in tasks:
            task.cancel()


async def _follow(place: int, reply: Reply, queue: "asyncio.Queue[tuple[int, Event | None] | ApiError]") -> None:
    try:
        async for event in reply:
            await queue.put((place, event))
        await queue.put((place, None))
    except ApiError as error:
        await queue.put(error)
