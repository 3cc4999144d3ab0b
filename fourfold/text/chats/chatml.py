"""ChatML, as SmolLM2 and many Llama-style models speak it, and the turns of Llama 3.

    <|im_start|>system⏎text<|im_end|>⏎<|im_start|>user⏎text<|im_end|>⏎<|im_start|>assistant⏎text<|im_end|>⏎
    BOS<|start_header_id|>user<|end_header_id|>⏎⏎text<|eot_id|><|start_header_id|>assistant<|end_header_id|>⏎⏎text<|eot_id|>

Source: the chat template in SmolLM2-135M-Instruct's GGUF, and of Meta-Llama-3-8B-Instruct. How tools are listed and called in
ChatML differs from model to model; calls are read here as Hermes and Qwen write them, which is unconfirmed for SmolLM2:
<tool_call>⏎{"name": ..., "arguments": ...}⏎</tool_call>. Thoughts are read where a model opens them by <think>.
"""

import re
from abc import abstractmethod
from collections.abc import Iterator
from typing import Any

from fourfold.text.chat import Part
from fourfold.text.chats.format import ChatFormat, Request, arguments_text, calls_of, control, plain, to_json
from fourfold.text.chats.grammar import json_call, thoughts
from fourfold.text.chats.parser import Parser, Steps
from fourfold.text.chats.tokens import THINK, THOUGHT
from fourfold.text.settings import TextSettings

START, END = "<|im_start|>", "<|im_end|>"
HEADER, HEADER_END, TURN_END = "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
CALL, CALL_END = "<tool_call>", "</tool_call>"


class Turns(ChatFormat):
    """Replies that are text, with thoughts and calls in plain tags; `system` begins a chat that has no message from the system."""

    marks = (THINK, THOUGHT, CALL, CALL_END)
    after = ""  # follows the end of a turn

    def __init__(self, system: str | None = None) -> None:
        self.system = system

    @abstractmethod
    def begin(self, role: str) -> Iterator[Part]:
        """The beginning of a turn."""

    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        if messages[0]["role"] != "system" and (request.tools or self.system is not None):
            messages = [{"role": "system", "content": self.system or ""}, *messages]
        for i, message in enumerate(messages):
            yield from self.begin(message["role"])
            if message["role"] == "assistant":
                yield from self.reply(message | {"reasoning_content": None})
            else:
                said = (message["content"], _tools(request) if i == 0 else "")
                yield plain("\n\n".join(text for text in said if text))
                yield control(self.end)
            yield plain("" if message.get("prefix") else self.after)
        if request.prompt:
            yield from self.begin("assistant")

    def reply(self, message: dict[str, Any], opened: bool = False) -> Iterator[Part]:
        if message.get("reasoning_content"):
            yield control(THINK, own=True)
            yield plain(message["reasoning_content"], own=True)
            yield control(THOUGHT, own=True)
        yield plain(message.get("content"), own=True)
        for i, function in enumerate(calls_of(message)):
            arguments = arguments_text(function, (CALL, CALL_END))
            yield plain("\n" if i or message.get("content") else "", own=True)
            yield control(CALL, own=True)
            yield plain(f'\n{{"name": {to_json(function["name"])}, "arguments": {arguments}}}\n', own=True)
            yield control(CALL_END, own=True)
        if not message.get("prefix"):
            yield control(self.end, own=True)

    def grammar(self, p: Parser, opened: bool) -> Steps[None]:
        yield from thoughts(p, opened)
        while (mark := (yield from p.until(f"\n{CALL}", CALL, to=p.say))) is not None:
            yield from json_call(p, mark, CALL_END)


class ChatML(Turns):
    name, end, required = "chatml", END, (START, END)
    after = "\n"

    @classmethod
    def of(cls, settings: TextSettings) -> "ChatML":
        found = re.search(r"<\|im_start\|>system(?:\\n|\n)([^'\"{}+<]+)<\|im_end\|>", settings.template or "")
        return cls(found[1].replace("\\n", "\n") if found else None)

    def begin(self, role: str) -> Iterator[Part]:
        yield control(START)
        yield plain(f"{role}\n")


class Llama3(Turns):
    """`bos` is the beginning of the text; the distillates of R1 have their own turns (v3.py)."""

    name, end, required = "llama3", TURN_END, (HEADER, HEADER_END, TURN_END)

    def __init__(self, bos: str = "<|begin_of_text|>") -> None:
        super().__init__()
        self.bos = bos

    @classmethod
    def of(cls, settings: TextSettings) -> "Llama3":
        return cls(settings.bos or "<|begin_of_text|>")

    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        yield control(self.bos)
        yield from super().parts([m | {"content": (m.get("content") or "").strip()} for m in messages], request)

    def begin(self, role: str) -> Iterator[Part]:
        yield control(HEADER)
        yield plain({"tool": "ipython"}.get(role, role))
        yield control(HEADER_END)
        yield plain("\n\n")


def _tools(request: Request) -> str:
    if not request.tools:
        return ""
    shown = "\n".join(to_json(tool) for tool in request.tools)
    form = f'{CALL}\n{{"name": ..., "arguments": {{...}}}}\n{CALL_END}'
    return f"# Tools\n\n<tools>\n{shown}\n</tools>\n\nTo call one, reply with:\n{form}"
