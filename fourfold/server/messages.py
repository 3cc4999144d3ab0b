"""/v1/messages: Anthropic's API over the same answers, and /v1/messages/count_tokens."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fourfold.engine.generate import end_tokens
from fourfold.engine.prompts import prompt_of
from fourfold.server.asking import Ask, Reply, begin, thinks
from fourfold.server.billing import Origin, origin_of
from fourfold.server.errors import ApiError
from fourfold.server.media import Intake
from fourfold.server.messages_body import MessagesBody, Prompted
from fourfold.server.messages_input import messages_of
from fourfold.server.messages_output import Blocks, Told
from fourfold.server.models import Served, Serving, serving_of
from fourfold.server.naming import named
from fourfold.server.sse import JSON, EventStream, event, watched
from fourfold.text.chats import DrawingFinished

router = APIRouter(tags=["messages"])
REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
NAMES = {
    r"response_format\.json_schema": "output_config.format",
    r"(tools\[\d+\])\.function\.parameters": r"\1.input_schema",
    r"(tools\[\d+\])\.function": r"\1",
    "reasoning_effort": "output_config.effort",
}
TAIL = 256  # tokens of an answer that are looked through for the stop string that ended it


@router.post("/v1/messages", response_model=None)
async def create(body: MessagesBody, request: Request) -> Response:
    """Answer messages. The events of a stream come in one fixed order (fourfold/server/messages_output.py)."""
    serving = serving_of(request)
    origin = origin_of(request, body.metadata.user_id if body.metadata else None)
    making = await watched(request, _begun(serving, serving.models.served(body.model), body, origin))
    if body.stream:
        events = (event(told["type"], told) async for told in making.events())
        return EventStream(events, serving.settings, [making.reply], failed)
    try:
        return JSON(await watched(request, making.whole()))
    finally:
        making.reply.cancel()


@router.post("/v1/messages/count_tokens")
async def count_tokens(body: Prompted, request: Request) -> dict[str, int]:
    """How many tokens the model would read."""
    serving = serving_of(request)
    served = serving.models.served(body.model)

    def count() -> int:
        asked = _ask(serving, served, body, origin_of(request))
        tools, form = asked.tools if asked.tool_choice != "none" else None, asked.response_format
        options = {"thinking": thinks(served, asked), "reasoning_effort": asked.effort}
        return len(prompt_of(served.model, asked.messages, served.speaker(), tools=tools, response_format=form, **options)[0])

    return {"input_tokens": await asyncio.to_thread(count)}


def failed(error: ApiError) -> bytes:
    """How a stream of this API says that something went wrong."""
    return event("error", error.anthropic())


def _ask(serving: Serving, served: Served, body: Prompted, origin: Origin) -> Ask:
    """Blocks while it fetches."""
    return Ask(
        messages=messages_of(body.system, body.messages, Intake(serving.settings, served.model)),
        origin=origin,
        tools=body.listed_tools(),
        tool_choice=body.choice(),
        parallel=body.tool_choice is None or not body.tool_choice.disable_parallel_tool_use,
        response_format=body.response_format(),
        thinking=body.thinks(),
        effort=body.output_config.effort if body.output_config else None,
    )


async def _begun(serving: Serving, served: Served, body: MessagesBody, origin: Origin) -> "_Making":
    """The question put to the engine."""
    ask = await asyncio.to_thread(_ask, serving, served, body, origin)
    ask.sampling = body.sampling(serving.settings, served.usual)
    with named(NAMES):
        [reply] = await begin(serving, served, ask)
    return _Making(served, body, reply)


class _Making:
    """One message on its way: the events of its reply as they come."""

    def __init__(self, served: Served, body: MessagesBody, reply: Reply) -> None:
        self.served, self.body, self.reply = served, body, reply
        self.id = f"msg_{secrets.token_hex(12)}"
        self.blocks = Blocks(served.model)

    async def events(self) -> AsyncIterator[Told]:
        """All events. Raises ApiError where the engine fails."""
        yield {"type": "message_start", "message": self._message()}
        yield {"type": "ping"}
        async for heard in self.reply:
            made = self.blocks.add(heard)
            for told in await asyncio.to_thread(list, made) if isinstance(heard, DrawingFinished) else made:
                yield told
        for told in self.blocks.close():
            yield told
        yield {"type": "message_delta", "delta": self._end(), "usage": usage(self.reply)}
        yield {"type": "message_stop"}

    async def whole(self) -> dict[str, Any]:
        """The finished message. Raises ApiError where the engine fails."""
        async for _ in self.events():
            pass
        return self._message() | self._end()

    def _message(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.body.model,
            "content": self.blocks.content,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage(self.reply),
        }

    def _end(self) -> dict[str, Any]:
        """Why the answer ended."""
        found = None
        if self.reply.finish_reason == "stop":
            found = stopped_by(self.served, self.reply.tokens, self.body.stop_sequences or [])
        reason = "stop_sequence" if found else REASONS[self.reply.finish_reason or "stop"]
        return {"stop_reason": reason, "stop_sequence": found}


def stopped_by(served: Served, tokens: list[int], stops: list[str]) -> str | None:
    """The stop string that ended an answer, None where the model did: of those in its last words the one completed first."""
    if not tokens or tokens[-1] in end_tokens(served.model, served.tokenizer):
        return None
    text = served.tokenizer.decode(tokens[-TAIL:])
    return min((stop for stop in stops if stop in text), key=lambda stop: text.index(stop) + len(stop), default=None)


def usage(reply: Reply) -> dict[str, Any]:
    """What an answer took so far, by the names of this API: input_tokens are those that were not found in the prefix store."""
    return {
        "input_tokens": reply.usage.prompt_tokens - reply.usage.cached_tokens,
        "cache_read_input_tokens": reply.usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": reply.usage.completion_tokens,
    }
