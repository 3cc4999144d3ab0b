"""V2.5, V3 and R1: turns between control tokens, tool calls with fenced JSON.

    BOS system <｜User｜>text<｜Assistant｜>text EOS
    <｜Assistant｜>text<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>NAME⏎```json⏎{...}⏎```<｜tool▁call▁end｜>
        ⏎<｜tool▁call▁begin｜>...<｜tool▁calls▁end｜>EOS
    <｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>text<｜tool▁output▁end｜>⏎...<｜tool▁outputs▁end｜>text EOS

(⏎ is a line end, the spaces after BOS, before EOS and the indents are not there). Sources: the chat templates of DeepSeek-V3-0324
and R1; the model card of V2.5 for the list of tools. That V3 and R1 were trained with the same list is unconfirmed.
"""

import json
from collections.abc import Iterator
from typing import Any

from fourfold.text.chat import Part
from fourfold.text.chats.format import ChatFormat, Request, arguments_text, calls_of, control, plain
from fourfold.text.chats.grammar import answer, thoughts
from fourfold.text.chats.parser import Parser, Steps
from fourfold.text.chats.tokens import (
    ASSISTANT,
    BOS,
    CALL,
    CALL_END,
    CALL_MARKS,
    CALLS,
    CALLS_END,
    EOS,
    OUTPUT,
    OUTPUT_END,
    OUTPUTS,
    OUTPUTS_END,
    SEPARATOR,
    THINK,
    THOUGHT,
    USER,
)
from fourfold.text.settings import TextSettings

FENCE, FENCE_END = "\n```json\n", "\n```"


class V3(ChatFormat):
    name, end, required = "v3", EOS, (BOS, EOS, USER, ASSISTANT)
    marks = CALL_MARKS
    opening = ""  # what the prompt puts into the assistant's mouth
    between = "\n"  # parts calls

    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        yield control(BOS)
        yield plain(system_text(messages, self.tools_text(request)))
        before = None
        for message in messages:
            role = message["role"]
            if before == "tool" != role:
                yield control(OUTPUTS_END)
            if role == "user":
                yield control(USER)
                yield plain(message["content"])
            elif role == "tool":
                yield plain("\n") if before == "tool" else control(OUTPUTS)
                yield from wrapped(OUTPUT, message["content"], OUTPUT_END)
            elif role == "assistant":
                if before != "tool":
                    yield control(ASSISTANT)
                yield from self.said(message)
            before = role if role != "system" else before
        if before == "tool":
            yield control(OUTPUTS_END)  # and the answer follows at once
        elif request.prompt:
            yield control(ASSISTANT)
            if self.opening:
                yield control(THINK)
                yield plain(self.opening.removeprefix(THINK))

    def tools_text(self, request: Request) -> str:
        """The list of tools behind the system text."""
        if not request.functions:
            return ""
        shown = (f"- `{f['name']}`:\n```json\n{json.dumps(f, ensure_ascii=False, indent=4)}\n```" for f in request.functions)
        return "## Tools\n\n### Function\n\nYou have the following functions available:\n\n" + "\n".join(shown)

    def said(self, message: dict[str, Any]) -> Iterator[Part]:
        """A turn of the assistant, without thoughts."""
        yield plain(message.get("content"), own=True)
        functions = calls_of(message)
        for i, function in enumerate(functions):
            yield plain(self.between, own=True) if i else control(CALLS, own=True)
            yield from self.call(function)
        if functions:
            yield control(CALLS_END, own=True)
        if not message.get("prefix"):
            yield control(EOS, own=True)

    def call(self, function: dict[str, Any]) -> Iterator[Part]:
        yield control(CALL, own=True)
        yield plain("function", own=True)
        yield control(SEPARATOR, own=True)
        yield plain(f"{function['name']}{FENCE}{arguments_text(function, CALL_MARKS)}{FENCE_END}", own=True)
        yield control(CALL_END, own=True)

    def reply(self, message: dict[str, Any], opened: bool = False) -> Iterator[Part]:
        yield from self.said(message)

    def grammar(self, p: Parser, opened: bool) -> Steps[None]:
        yield from answer(p, (CALLS,), CALL, CALLS_END, self.read_call)

    def read_call(self, p: Parser, begin: str) -> Steps[str | None]:
        kind, mark = yield from p.gather(SEPARATOR, CALL_END, "\n")
        if mark != SEPARATOR:
            return begin + kind + (mark or "")
        name, mark = yield from p.gather(FENCE, "\n", CALL_END)
        if mark is None:
            return begin + kind + SEPARATOR + name
        p.call(name)
        if mark != CALL_END:
            closing = [FENCE_END + CALL_END, f"{FENCE_END}\n{CALL_END}"] if mark == FENCE else []
            mark = yield from p.until_json_ends(*closing, CALL_END, to=p.argue)
        p.end_call(mark is not None)
        return None if mark is not None else ""


class V25(V3):
    name = "v2.5"


class R1(V3):
    """R1 and its distillates: V3, and every reply opens with thoughts. Earlier thoughts are not shown again.

    The templates of R1 and of the distillates open the thoughts in the prompt, with a line end; R1-0528's leaves it to the model.
    """

    name = "r1"
    marks = (THINK, THOUGHT, *CALL_MARKS)

    def __init__(self, opening: str = f"{THINK}\n") -> None:
        self.opening = opening

    @classmethod
    def of(cls, settings: TextSettings) -> "R1":
        template = (settings.template or "").replace("\\n", "\n")
        opened = (text for text in (f"{THINK}\n", THINK) if ASSISTANT + text in template)
        return cls(next(opened, "") if template else f"{THINK}\n")

    def reply(self, message: dict[str, Any], opened: bool = True) -> Iterator[Part]:
        if not opened:
            yield control(THINK, own=True)
        yield plain(message.get("reasoning_content"), own=True)
        yield control(THOUGHT, own=True)
        yield from self.said(message)

    def grammar(self, p: Parser, opened: bool) -> Steps[None]:
        yield from thoughts(p, opened)
        yield from super().grammar(p, opened)


def system_text(messages: list[dict[str, Any]], tools: str = "") -> str:
    """All system messages, and the list of tools, parted by empty lines."""
    texts = [message["content"] for message in messages if message["role"] == "system"]
    return "\n\n".join([*texts, *([tools] if tools else [])])


def wrapped(begin: str, text: str, end: str) -> Iterator[Part]:
    yield control(begin)
    yield plain(text)
    yield control(end)
