"""/v1/responses: answers as items, streamed or whole, kept so that a next one can go on from them."""

import asyncio
import copy
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from fourfold.server.asking import OURS, Ask, Reply, begin, usage_of
from fourfold.server.billing import origin_of
from fourfold.server.errors import ApiError
from fourfold.server.logprobs import chat_logprobs
from fourfold.server.media import Intake
from fourfold.server.models import Served, Serving, serving_of
from fourfold.server.naming import named
from fourfold.server.responses_body import ResponseBody
from fourfold.server.responses_input import messages_of
from fourfold.server.responses_output import Output, Told, new_id
from fourfold.server.shelf import owner_of
from fourfold.server.sse import JSON, EventStream, event, watched
from fourfold.text.chats import DrawingFinished, Event, collect

router = APIRouter(tags=["responses"])
NAMES = {r"response_format\.json_schema": "text.format", r"response_format": "text.format", r"(tools\[\d+\])\.function": r"\1"}
ENDS = ("response.completed", "response.incomplete")


@dataclass(frozen=True)
class Kept:
    """A stored response: what clients see of it, and the conversation up to its end, without instructions."""

    response: dict[str, Any]
    messages: list[dict[str, Any]]


@router.post("/v1/responses", response_model=None)
async def create(body: ResponseBody, request: Request) -> Response:
    """Answer input. The events of a stream come in one fixed order (fourfold/server/responses_output.py)."""
    serving = serving_of(request)
    making = await watched(request, _begun(serving, serving.models.served(body.model), body, request))
    if body.stream:
        return EventStream((event(told["type"], told) async for told in making.events()), serving.settings, [making.reply])
    try:
        return JSON(await watched(request, making.whole()))
    finally:
        making.reply.cancel()


@router.get("/v1/responses/{response_id}", response_model=None)
def retrieve(response_id: str, request: Request) -> Response:
    """A response that was stored."""
    return JSON(serving_of(request).responses.get(owner_of(request), response_id).response)


@router.delete("/v1/responses/{response_id}")
def delete(response_id: str, request: Request) -> dict[str, Any]:
    """Forget a response; those that went on from it stay whole."""
    serving_of(request).responses.pop(owner_of(request), response_id)
    return {"id": response_id, "object": "response", "deleted": True}


async def _begun(serving: Serving, served: Served, body: ResponseBody, request: Request) -> "_Making":
    """The question put to the engine."""
    owner = owner_of(request)
    said = await asyncio.to_thread(messages_of, body.input, Intake(serving.settings, served.model))
    if body.previous_response_id is not None:
        said = serving.responses.get(owner, body.previous_response_id, "previous_response_id").messages + said
    told = [{"role": "system", "content": body.instructions}] if body.instructions else []
    ask = Ask(
        messages=told + said,
        origin=origin_of(request, body.user_id),
        tools=body.listed_tools(),
        tool_choice=body.choice(),
        parallel=body.parallel_tool_calls is not False,
        response_format=body.text.response_format() if body.text else None,
        effort=body.reasoning.effort if body.reasoning else None,
        sampling=body.sampling(serving.settings, served.usual),
        logprobs=body.likeliest(),
    )
    with named(NAMES):
        [reply] = await begin(serving, served, ask)
    return _Making(serving, served, owner, body, said, reply)


class _Making:
    """One response on its way: the events of its reply as they come, and what is stored at its end."""

    def __init__(
        self, serving: Serving, served: Served, owner: str, body: ResponseBody, said: list[dict[str, Any]], reply: Reply
    ) -> None:
        self.serving, self.owner, self.body, self.said, self.reply = serving, owner, body, said, reply
        self.heard: list[Event] = []
        self.output = Output(blank(body), served.model, lambda chosen: chat_logprobs(served.tokenizer, chosen, [])["content"])

    async def events(self) -> AsyncIterator[Told]:
        """All events; a failure of the engine is the last of them."""
        for told in self.output.begin():
            yield told
        place = 0
        try:
            async for heard in self.reply:
                self.heard.append(heard)
                chosen, place = self.reply.logprobs[place:], len(self.reply.logprobs)
                made = self.output.add(heard, chosen)
                for told in await asyncio.to_thread(list, made) if isinstance(heard, DrawingFinished) else made:
                    yield told
        except ApiError as error:
            for told in self.output.fail(error):
                yield told
            return
        for told in self.output.finish(self.reply.finish_reason, usage(self.reply)):
            if self.body.store is not False and told["type"] in ENDS:
                self._keep()
            yield told

    async def whole(self) -> dict[str, Any]:
        """The finished response. Raises ApiError where the engine failed."""
        async for _ in self.events():
            pass
        if self.reply.error is not None:
            raise self.reply.error
        return self.output.response

    def _keep(self) -> None:
        """Before the client is told that it is whole, so that it can go on from it at once."""
        response = self.output.response
        answer = collect(self.heard).to_dict()
        calls = (item["call_id"] for item in response["output"] if item["type"] == "function_call")
        for call, name in zip(answer.get("tool_calls", []), calls, strict=True):
            call["id"] = name
        kept = Kept(copy.deepcopy(response), [*self.said, answer])
        self.serving.responses.put(self.owner, response["id"], kept, size_of(kept))


def blank(body: ResponseBody) -> dict[str, Any]:
    """A response of which nothing is made yet: what was asked, as it is understood."""
    asked = body.model_dump(include={"instructions", "max_output_tokens", "previous_response_id", "temperature", "top_p"})
    return {
        "id": new_id("resp"),
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "background": False,
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": body.model,
        "output": [],
        **asked,
        "metadata": body.metadata or {},
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "reasoning": {"effort": body.reasoning.effort if body.reasoning else None, "summary": None},
        "store": body.store is not False,
        "text": {"format": (body.text and body.text.format) or {"type": "text"}},
        "tool_choice": body.tool_choice or "auto",
        "tools": [tool.model_dump(exclude_unset=True) for tool in body.tools or []],
        "top_logprobs": body.top_logprobs or 0,
        "truncation": "disabled",
        "usage": None,
    }


def usage(reply: Reply) -> dict[str, Any]:
    """What an answer took, by the names of this API; our own beside them."""
    found = usage_of([reply])
    return {
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": found["prompt_tokens_details"] | {"cache_write_tokens": 0},
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": found["completion_tokens_details"],
        **{name: found[name] for name in ("total_tokens", *OURS)},
    }


def size_of(kept: Kept) -> int:
    """About how many bytes it holds: its texts, and the files among its messages."""
    return _size(kept.response) + _size(kept.messages)


def _size(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_size, value.values()))
    if isinstance(value, list):
        return sum(map(_size, value))
    return len(value) if isinstance(value, str | bytes) else 8 * getattr(value, "numel", int)()
