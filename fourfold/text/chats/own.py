"""Our own chat format (text/chat.py) behind the protocol that the published ones share."""

from collections.abc import Iterator
from typing import Any

from fourfold.text import chat
from fourfold.text.chat import Part
from fourfold.text.chats.format import ChatFormat, Request, control
from fourfold.text.chats.grammar import json_call, thoughts
from fourfold.text.chats.parser import Parser, Steps

CALL, CALL_END = "<|tool_call|>", "<|/tool_call|>"


class Own(ChatFormat):
    name, end, required = "fourfold", "<|end|>", ("<|bos|>", "<|assistant|>", "<|end|>")
    marks = ("<|think|>", "<|/think|>", CALL, CALL_END)
    think = "<|think|>"
    has_media = True

    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        return chat.parts(messages, request.thinking, request.prompt, list(request.tools))

    def reply(self, message: dict[str, Any], opened: bool = False) -> Iterator[Part]:
        said = list(chat.parts([message], prompt=False))[2:]  # without <|bos|><|assistant|>
        if not opened:
            return iter(said)
        return iter(said[1:] if message.get("reasoning_content") else [control("<|/think|>", own=True), *said])

    def grammar(self, p: Parser, opened: bool) -> Steps[None]:
        yield from thoughts(p, opened, self.think, "<|/think|>")
        while (yield from p.until(CALL, to=p.say)) is not None:
            yield from json_call(p, CALL, CALL_END)
