"""V3.1 (and V3.1-Terminus, V3.2-Exp): one model that thinks or not, as the end of the prompt says.

    BOS system <｜User｜>text<｜Assistant｜></think>text EOS<｜User｜>text<｜Assistant｜><think>
    ...</think><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>NAME<｜tool▁sep｜>{...}<｜tool▁call▁end｜>...<｜tool▁calls▁end｜>EOS
    <｜tool▁output▁begin｜>text<｜tool▁output▁end｜>...text EOS

(no spaces). Source: chat template and model card of DeepSeek-V3.1, which calls tools without thinking only. Thoughts are never
shown again. That V3.2-Exp has the same template is unconfirmed; a folder's own template decides (choose.py).
"""

from collections.abc import Iterator
from typing import Any

from fourfold.text.chat import Part
from fourfold.text.chats.format import Request, arguments_text, control, marked, plain, to_json
from fourfold.text.chats.grammar import thoughts
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
    SEPARATOR,
    THINK,
    THOUGHT,
    USER,
)
from fourfold.text.chats.v3 import V3, system_text, wrapped

RULES = (
    f"IMPORTANT: ALWAYS adhere to this exact format for tool use:\n{CALLS}{CALL}tool_call_name{SEPARATOR}tool_call_arguments"
    f"{CALL_END}{{additional_tool_calls}}{CALLS_END}\n\nWhere:\n"
    "- `tool_call_name` must be an exact match to one of the available tools\n"
    "- `tool_call_arguments` must be valid JSON that strictly follows the tool's Parameters Schema\n"
    "- For multiple tool calls, chain them directly without separators or spaces"
)


class V31(V3):
    name, required = "v3.1", (BOS, EOS, USER, ASSISTANT, THINK, THOUGHT)
    marks = (THINK, THOUGHT, *CALL_MARKS)
    between = ""

    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        yield control(BOS)
        yield plain(system_text(messages))
        if request.functions:
            yield from self._tools(request, bool(system_text(messages)))
        asked = False  # whether a user spoke last
        for message in messages:
            role = message["role"]
            if role == "user":
                yield control(USER)
                yield plain(message["content"])
            elif role == "tool":
                yield from wrapped(OUTPUT, message["content"], OUTPUT_END)
            elif role == "assistant":
                if asked:
                    yield from _opening(request.thinking and bool(message.get("prefix")))
                yield from self.said(message)
            asked = role == "user" or (asked and role == "system")
        if request.prompt and asked:
            yield from _opening(request.thinking)

    def _tools(self, request: Request, after_text: bool) -> Iterator[Part]:
        yield plain(("\n\n" if after_text else "") + "## Tools\nYou have access to the following tools:\n\n")
        for function in request.functions:
            described = f"### {function['name']}\nDescription: {function.get('description') or ''}\n\n"
            yield plain(f"{described}Parameters: {to_json(function.get('parameters', {}))}\n\n")
        yield from marked(RULES, CALL_MARKS)

    def call(self, function: dict[str, Any]) -> Iterator[Part]:
        yield control(CALL, own=True)
        yield plain(function["name"], own=True)
        yield control(SEPARATOR, own=True)
        yield plain(arguments_text(function, CALL_MARKS), own=True)
        yield control(CALL_END, own=True)

    def reply(self, message: dict[str, Any], opened: bool = False) -> Iterator[Part]:
        if opened:
            yield plain(message.get("reasoning_content"), own=True)
            yield control(THOUGHT, own=True)
        yield from self.said(message)

    def grammar(self, p: Parser, opened: bool) -> Steps[None]:
        yield from thoughts(p, opened)
        yield from super().grammar(p, opened)

    def read_call(self, p: Parser, begin: str) -> Steps[str | None]:
        name, mark = yield from p.gather(SEPARATOR, CALL_END, "\n")
        if mark != SEPARATOR:
            return begin + name + (mark or "")
        p.call(name)
        mark = yield from p.until_json_ends(CALL_END, to=p.argue)
        p.end_call(mark is not None)
        return None if mark is not None else ""


def _opening(thinking: bool) -> Iterator[Part]:
    yield control(ASSISTANT)
    yield control(THINK if thinking else THOUGHT)
