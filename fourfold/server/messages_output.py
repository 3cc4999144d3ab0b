"""An answer as content blocks of the Messages API, and the events that tell of them in their order.

    message_start  ping  (content_block_start  content_block_delta*  content_block_stop)*  message_delta  message_stop

Blocks: thinking, text, tool_use, and image for what is drawn (our own: the API has no drawings).
"""

import hashlib
import json
import secrets
from collections.abc import Iterator
from typing import Any

from fourfold.errors import MediaError
from fourfold.model.transformer import Transformer
from fourfold.server.drawn import part_of
from fourfold.text.chats import CallArguments, CallBroken, CallFinished, CallStarted, Content, DrawingFinished, Event, Reasoning

Told = dict[str, Any]  # an event of the stream


class Blocks:
    """An answer being made: each step gives the events that it causes; `content` holds the blocks that are whole."""

    def __init__(self, model: Transformer) -> None:
        self.model = model
        self.content: list[dict[str, Any]] = []
        self.block: dict[str, Any] | None = None  # the one that is open
        self.arguments = ""  # of an open call, as JSON text

    def add(self, event: Event) -> Iterator[Told]:
        match event:
            case Reasoning(text):
                yield from self._open({"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta("thinking", text)
            case Content(text):
                yield from self._open({"type": "text", "text": ""})
                yield self._delta("text", text)
            case CallStarted(_, name):
                yield from self.close()
                yield from self._open({"type": "tool_use", "id": f"toolu_{secrets.token_hex(12)}", "name": name, "input": {}})
            case CallArguments(_, text):
                self.arguments += text
                yield self._told("content_block_delta", delta={"type": "input_json_delta", "partial_json": text})
            case CallFinished() | CallBroken():
                yield from self.close()
            case DrawingFinished():
                yield from self.close()
                yield from self._open(self._shown(event))
                yield from self.close()
            case _:  # a drawing begins, and its codes
                pass

    def close(self) -> Iterator[Told]:
        """End the block that is open, if one is."""
        if self.block is None:
            return
        if self.block["type"] == "thinking":
            # Clients send it back with the thoughts; that it fits them is checked by nobody here.
            self.block["signature"] = hashlib.blake2b(self.block["thinking"].encode(), digest_size=16).hexdigest()
            yield self._told("content_block_delta", delta={"type": "signature_delta", "signature": self.block["signature"]})
        yield self._told("content_block_stop")
        self.content.append(self._whole(self.block))
        self.block, self.arguments = None, ""

    def _open(self, block: dict[str, Any]) -> Iterator[Told]:
        """Open a block, unless one of this type is open."""
        if self.block is not None and self.block["type"] == block["type"]:
            return
        yield from self.close()
        self.block = block
        yield self._told("content_block_start", content_block=dict(block))

    def _delta(self, kind: str, text: str) -> Told:
        assert self.block is not None
        self.block[kind] += text
        return self._told("content_block_delta", delta={"type": f"{kind}_delta", kind: text})

    def _told(self, kind: str, **fields: Any) -> Told:
        return {"type": kind, "index": len(self.content), **fields}

    def _whole(self, block: dict[str, Any]) -> dict[str, Any]:
        """A call with its input; what is not JSON (cut off, or badly written) is shown as the text that it is."""
        if block["type"] != "tool_use":
            return block
        try:
            given = json.loads(self.arguments or "{}")
        except ValueError:
            given = None
        return block | {"input": given} if isinstance(given, dict) else {"type": "text", "text": self.arguments}

    def _shown(self, drawing: DrawingFinished) -> dict[str, Any]:
        try:
            part = part_of(drawing, self.model)
        except MediaError as error:
            return {"type": "text", "text": f"[{error}]"}
        head, _, data = part[part["type"]]["url"].partition(",")
        media_type = head.removeprefix("data:").removesuffix(";base64")
        return {"type": "image", "source": {"type": "base64", "media_type": media_type, "data": data}}
