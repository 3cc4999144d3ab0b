"""An answer as items of the Responses API, and the events that tell of them in their order.

    response.created  response.in_progress  (item)*  response.completed | response.incomplete | response.failed

    item      response.output_item.added  (inner)  response.output_item.done
    reasoning reasoning_summary_part.added  reasoning_summary_text.delta*  reasoning_summary_text.done  reasoning_summary_part.done
    message   content_part.added  output_text.delta*  output_text.done  content_part.done
    call      function_call_arguments.delta*  function_call_arguments.done
    drawing   image_generation_call.in_progress  image_generation_call.generating  image_generation_call.completed

One item is open at a time. Events are numbered from 0. What is not streamed is the last event's response.
"""

import copy
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from fourfold.engine.request import Chosen
from fourfold.errors import MediaError
from fourfold.model.transformer import Transformer
from fourfold.server.drawn import part_of
from fourfold.server.errors import ApiError
from fourfold.text.chats import (
    CallArguments,
    CallBroken,
    CallFinished,
    CallStarted,
    Content,
    DrawingBegun,
    DrawingFinished,
    Event,
    Reasoning,
)

Told = dict[str, Any]  # an event of the stream
Spelt = Callable[[list[Chosen]], list[dict[str, Any]]]  # log-probabilities in the API's form


def new_id(prefix: str) -> str:
    return f"{prefix}_{uuid.uuid4().hex}"


class Output:
    """A response being made: each step gives the events that it causes; `response` is always as far as they have told."""

    def __init__(self, response: dict[str, Any], model: Transformer, spelt: Spelt) -> None:
        self.response, self.model, self.spelt, self.number = response, model, spelt, 0
        self.item: dict[str, Any] | None = None  # the one that is open

    def begin(self) -> Iterator[Told]:
        yield self._whole("created")
        yield self._whole("in_progress")

    def add(self, event: Event, chosen: list[Chosen]) -> Iterator[Told]:
        """An event of the answer; `chosen`: the log-probabilities that came with it, where they are wanted."""
        match event:
            case Reasoning(text):
                yield from self._open("reasoning")
                yield self._tell("reasoning_summary_text.delta", summary_index=0, delta=text)
                self._inner["text"] += text
            case Content(text):
                yield from self._open("message")
                spelt = self.spelt(chosen)
                yield self._tell("output_text.delta", content_index=0, delta=text, logprobs=spelt)
                self._inner["text"] += text
                self._inner["logprobs"] += spelt
            case CallStarted(_, name):
                yield from self._open("function_call", new=True, call_id=new_id("call"), name=name, arguments="")
            case CallArguments(_, text):
                assert self.item is not None
                yield self._tell("function_call_arguments.delta", delta=text)
                self.item["arguments"] += text
            case CallFinished():
                yield from self._close()
            case CallBroken():
                yield from self._close("incomplete")
            case DrawingBegun(grid):
                yield from self._open("image_generation_call", new=True, result=None, output_format=_format(grid))
            case DrawingFinished():
                yield from self._drawn(event)
            case _:  # codes of a drawing
                pass

    def finish(self, reason: str | None, usage: dict[str, Any]) -> Iterator[Told]:
        """The answer is whole ("stop", "tool_calls"), or was cut off ("length")."""
        cut = reason == "length"
        if self.item is None and not self.response["output"]:
            yield from self._open("message")
        yield from self._close("incomplete" if cut else "completed")
        self.response |= {"usage": usage, "status": "incomplete" if cut else "completed", "completed_at": int(time.time())}
        if cut:
            self.response["incomplete_details"] = {"reason": "max_output_tokens"}
        yield self._whole(self.response["status"])

    def fail(self, error: ApiError) -> Iterator[Told]:
        """Something went wrong on the way."""
        yield from self._close("incomplete")
        code = {429: "rate_limit_exceeded", 400: "invalid_prompt"}.get(error.status, "server_error")
        self.response |= {"status": "failed", "error": {"code": code, "message": error.message}}
        yield self._whole("failed")

    @property
    def _inner(self) -> dict[str, Any]:
        """The one part of an open item of reasoning, or of a message."""
        assert self.item is not None
        return self.item["summary" if self.item["type"] == "reasoning" else "content"][0]

    def _open(self, kind: str, new: bool = False, **fields: Any) -> Iterator[Told]:
        """Open an item of a kind, unless one is open and need not be `new`."""
        if self.item is not None and self.item["type"] == kind and not new:
            return
        yield from self._close()
        self.item = {"id": new_id(PREFIXES[kind]), "type": kind, "status": "in_progress", **fields}
        if kind == "message":
            self.item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            self.item["summary"] = []
        yield self._event("output_item.added", item=copy.deepcopy(self.item), output_index=len(self.response["output"]))
        self.response["output"].append(self.item)
        if kind == "message":
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
            yield self._tell("content_part.added", content_index=0, part=copy.deepcopy(part))
            self.item["content"].append(part)
        elif kind == "reasoning":
            yield self._tell("reasoning_summary_part.added", summary_index=0, part={"type": "summary_text", "text": ""})
            self.item["summary"].append({"type": "summary_text", "text": ""})
        elif kind == "image_generation_call":
            yield self._tell("image_generation_call.in_progress")
            yield self._tell("image_generation_call.generating")

    def _close(self, status: str = "completed") -> Iterator[Told]:
        if self.item is None:
            return
        kind = self.item["type"]
        if kind == "message":
            part = copy.deepcopy(self._inner)
            yield self._tell("output_text.done", content_index=0, text=part["text"], logprobs=part["logprobs"])
            yield self._tell("content_part.done", content_index=0, part=part)
        elif kind == "reasoning":
            yield self._tell("reasoning_summary_text.done", summary_index=0, text=self._inner["text"])
            yield self._tell("reasoning_summary_part.done", summary_index=0, part=dict(self._inner))
        elif kind == "function_call":
            yield self._tell("function_call_arguments.done", arguments=self.item["arguments"], name=self.item["name"])
        elif self.item["result"] is None:
            status = "failed"
        else:
            yield self._tell("image_generation_call.completed")
        self.item["status"] = status
        place = len(self.response["output"]) - 1
        yield self._event("output_item.done", item=copy.deepcopy(self.item), output_index=place)
        self.item = None

    def _drawn(self, drawing: DrawingFinished) -> Iterator[Told]:
        assert self.item is not None
        try:
            part = part_of(drawing, self.model)
        except MediaError as error:
            self.item["error"] = {"type": "server_error", "message": str(error)}
        else:
            self.item["result"] = part[part["type"]]["url"].partition(",")[2]
        yield from self._close()

    def _tell(self, kind: str, **fields: Any) -> Told:
        """An event of the open item."""
        assert self.item is not None
        place = self.response["output"].index(self.item)
        return self._event(kind, item_id=self.item["id"], output_index=place, **fields)

    def _whole(self, kind: str) -> Told:
        return self._event(kind, response=copy.deepcopy(self.response))

    def _event(self, kind: str, **fields: Any) -> Told:
        told = {"type": f"response.{kind}", "sequence_number": self.number, **fields}
        self.number += 1
        return told


PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "image_generation_call": "ig"}


def _format(grid: tuple[int, ...]) -> str:
    return "png" if len(grid) == 2 else "mp4"
