"""The chat format: turns between control tokens, with thinking and tool calls.

    <|bos|><|system|>text<|end|><|user|>text<|end|><|assistant|><|think|>thoughts<|/think|>text<|end|>
    <|assistant|><|tool_call|>{"name": ..., "arguments": ...}<|/tool_call|><|end|><|tool_result|>text<|/tool_result|>

(without line breaks). `render` puts control tokens in by id and encodes everything else as ordinary text, so nobody
can type a control token. `CHAT_TEMPLATE` is the same format for tools that use Jinja templates. Thoughts are kept only
after the last user turn, as published reasoning models do.
"""

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

from fourfold.errors import DataError

if TYPE_CHECKING:
    from fourfold.text.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant", "tool")

CHAT_TEMPLATE = """\
{%- set ns = namespace(last=-1) -%}
{%- for m in messages -%}{%- if m.role == 'user' -%}{%- set ns.last = loop.index0 -%}{%- endif -%}{%- endfor -%}
{{- '<|bos|>' -}}
{%- if tools and not (messages and messages[0].role == 'system') -%}
{{- '<|system|># Tools' -}}{%- for t in tools -%}{{- '\\n' + t | tojson -}}{%- endfor -%}{{- '<|end|>' -}}
{%- endif -%}
{%- for m in messages -%}
{%- if m.role == 'tool' -%}
{{- '<|tool_result|>' + m.content + '<|/tool_result|>' -}}
{%- elif m.role == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- if m.reasoning_content and loop.index0 > ns.last -%}
{{- '<|think|>' + m.reasoning_content + '<|/think|>' -}}
{%- endif -%}
{{- m.content or '' -}}
{%- for c in m.tool_calls or [] -%}
{%- set f = c.function -%}
{{- '<|tool_call|>{"name": ' + f.name | tojson + ', "arguments": ' -}}
{{- (f.arguments if f.arguments is string else f.arguments | tojson) + '}<|/tool_call|>' -}}
{%- endfor -%}
{{- '<|end|>' -}}
{%- else -%}
{{- '<|' + m.role + '|>' + m.content -}}
{%- if tools and loop.first and m.role == 'system' -%}
{{- '\\n\\n# Tools' -}}{%- for t in tools -%}{{- '\\n' + t | tojson -}}{%- endfor -%}
{%- endif -%}
{{- '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' + ('<|think|>' if thinking else '') -}}
{%- endif -%}"""


class Part(NamedTuple):
    """A stretch of a rendered chat: a control token or ordinary text; `own` when it is the assistant who says it."""

    text: str
    control: bool
    own: bool


def render(
    messages: list[dict],
    tokenizer: "Tokenizer",
    thinking: bool = False,
    add_generation_prompt: bool = True,
    tools: list[dict] | None = None,
) -> list[int]:
    """Ids of a chat; with `add_generation_prompt` it ends where the assistant (with `thinking`: its thoughts) begins.

    Messages are dicts with `role` (system, user, assistant, tool), `content`, and for the assistant optionally
    `reasoning_content` and `tool_calls` in the OpenAI form. Raises DataError naming the message that is not.
    """
    return render_with_mask(messages, tokenizer, thinking, add_generation_prompt, tools)[0]


def render_with_mask(
    messages: list[dict],
    tokenizer: "Tokenizer",
    thinking: bool = False,
    add_generation_prompt: bool = False,
    tools: list[dict] | None = None,
) -> tuple[list[int], list[bool]]:
    """`render`, and for each id whether the assistant says it: what fine-tuning puts its loss on."""
    ids: list[int] = []
    mask: list[bool] = []
    for part in parts(messages, thinking, add_generation_prompt, tools):
        piece = [tokenizer.special(part.text)] if part.control else tokenizer.encode(part.text)
        ids += piece
        mask += [part.own] * len(piece)
    return ids, mask


def parts(messages: list[dict], thinking: bool = False, prompt: bool = True, tools: list[dict] | None = None) -> Iterator[Part]:
    """The chat as control tokens and texts, in order."""
    check(messages)
    last_user = max((i for i, m in enumerate(messages) if m["role"] == "user"), default=-1)
    listing = "# Tools" + "".join("\n" + _json(t) for t in tools) if tools else ""
    yield Part("<|bos|>", True, False)
    if listing and not (messages and messages[0]["role"] == "system"):
        yield from _turn("system", listing)
    for i, message in enumerate(messages):
        role, content = message["role"], message.get("content") or ""
        if role == "assistant":
            yield Part("<|assistant|>", True, False)
            yield from _said(message, content, keep_thoughts=i > last_user)
        elif role == "tool":
            yield from _turn("tool_result", content, "/tool_result")
        else:
            yield from _turn(role, f"{content}\n\n{listing}" if listing and role == "system" and i == 0 else content)
    if prompt:
        yield Part("<|assistant|>", True, False)
        if thinking:
            yield Part("<|think|>", True, False)


def check(messages: list[dict], roles: tuple[str, ...] = ROLES) -> None:
    """Raise DataError at the first message that is not one."""
    if not isinstance(messages, list):
        raise DataError("messages: must be a list of objects with role and content")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.get("role") not in roles:
            raise DataError(f"messages[{i}].role: must be one of {', '.join(roles)}")
        if not isinstance(message.get("reasoning_content"), str | None):
            raise DataError(f"messages[{i}].reasoning_content: must be text")
        calls = message.get("tool_calls") or []
        if not isinstance(calls, list):
            raise DataError(f"messages[{i}].tool_calls: must be a list")
        called = message.get("content") is None and calls and message["role"] == "assistant"
        if not isinstance(message.get("content"), str) and not called:
            raise DataError(f"messages[{i}].content: must be text")
        for j, call in enumerate(calls):
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str) or "arguments" not in function:
                raise DataError(f"messages[{i}].tool_calls[{j}].function: must have name (text) and arguments")


def _turn(opening: str, text: str, closing: str = "end") -> Iterator[Part]:
    yield Part(f"<|{opening}|>", True, False)
    yield Part(text, False, False)
    yield Part(f"<|{closing}|>", True, False)


def _said(message: dict, content: str, keep_thoughts: bool) -> Iterator[Part]:
    thoughts = message.get("reasoning_content")
    if thoughts and keep_thoughts:
        yield Part("<|think|>", True, True)
        yield Part(thoughts, False, True)
        yield Part("<|/think|>", True, True)
    yield Part(content, False, True)
    for call in message.get("tool_calls") or []:
        function = call["function"]
        arguments = function["arguments"]
        arguments = arguments if isinstance(arguments, str) else _json(arguments)
        yield Part("<|tool_call|>", True, True)
        yield Part(f'{{"name": {_json(function["name"])}, "arguments": {arguments}}}', False, True)
        yield Part("<|/tool_call|>", True, True)
    yield Part("<|end|>", True, True)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
