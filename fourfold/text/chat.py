"""The chat format: turns between control tokens, with thinking and tool calls.

    <|bos|><|system|>text<|end|><|user|>text<|end|><|assistant|><|think|>thoughts<|/think|>text<|end|>
    <|assistant|><|tool_call|>{"name": ..., "arguments": ...}<|/tool_call|><|end|><|tool_result|>text<|/tool_result|>

(without line breaks). `render` puts control tokens in by id and encodes everything else as ordinary text, so nobody
can type a control token. `CHAT_TEMPLATE` is the same format for tools that use Jinja templates. Thoughts are kept only
after the last user turn, as published reasoning models do.
"""

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import TYPE_CHECKING, Any, NamedTuple

from fourfold.errors import DataError
from fourfold.text.content import Show, check_part, span_of_part

if TYPE_CHECKING:
    from fourfold.media.spans import Span
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
    """A stretch of a rendered chat: a control token, ordinary text, or media; `own` when it is the assistant who says it."""

    text: str
    control: bool
    own: bool
    media: dict[str, Any] | None = None  # a part of content that is not text


def render(
    messages: list[dict],
    tokenizer: "Tokenizer",
    thinking: bool = False,
    add_generation_prompt: bool = True,
    tools: list[dict] | None = None,
) -> list[int]:
    """Ids of a chat; with `add_generation_prompt` it ends where the assistant (with `thinking`: its thoughts) begins.

    Messages are dicts with `role` (system, user, assistant, tool), `content`, and for the assistant optionally
    `reasoning_content` and `tool_calls` in the OpenAI form; the last of the assistant may have `prefix` true, and is left
    open to be continued. Raises DataError naming the message that is not.
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
    return encode(parts(messages, thinking, add_generation_prompt, tools), tokenizer)


def encode(parts: Iterable[Part], tokenizer: "Tokenizer") -> tuple[list[int], list[bool]]:
    """Ids, and for each whether the assistant says it. A control token that the vocabulary lacks is written out as text.

    Raises DataError for media, which are no ids: see `lay_out`.
    """
    ids: list[int] = []
    mask: list[bool] = []
    for part in _merged(parts, tokenizer.controls):
        if part.media is not None:
            raise DataError(f"messages: hold {part.media['type']}, which has no token ids; ask for a span")
        piece = _ids(part, tokenizer)
        ids += piece
        mask += [part.own] * len(piece)
    return ids, mask


def lay_out(parts: Iterable[Part], tokenizer: "Tokenizer", show: Show | None = None) -> "Span":
    """`encode` with media in their places; `show` reads those that come as files. Raises what it raises."""
    from fourfold.media import spans

    merged = _merged(parts, tokenizer.controls)
    laid = (spans.text(_ids(p, tokenizer)) if p.media is None else span_of_part(p.media, tokenizer, show) for p in merged)
    return spans.join([spans.text([]), *laid])


def _ids(part: Part, tokenizer: "Tokenizer") -> list[int]:
    return [tokenizer.special(part.text)] if part.control else tokenizer.encode(part.text)


def _merged(parts: Iterable[Part], controls: Iterable[str]) -> Iterator[Part]:
    """Neighbouring texts as one, so that they are encoded as one; controls that are none here are text."""
    known = (part._replace(control=part.control and part.text in controls) for part in parts)
    for (whole, own), group in groupby(known, key=lambda part: (part.control or part.media is not None, part.own)):
        if whole:
            yield from group
        elif text := "".join(part.text for part in group):
            yield Part(text, False, own)


def parts(messages: list[dict], thinking: bool = False, prompt: bool = True, tools: list[dict] | None = None) -> Iterator[Part]:
    """The chat as control tokens and texts, in order."""
    check(messages, media=True)
    last = last_user(messages)
    listing = "# Tools" + "".join("\n" + _json(t) for t in tools) if tools else ""
    yield Part("<|bos|>", True, False)
    if listing and not (messages and messages[0]["role"] == "system"):
        yield from _turn("system", [_text(listing)])
    for i, message in enumerate(messages):
        role, content = message["role"], list(contents(message.get("content")))
        if role == "assistant":
            yield Part("<|assistant|>", True, False)
            yield from _said(message, keep_thoughts=i > last)
        elif role == "tool":
            yield from _turn("tool_result", content, "/tool_result")
        else:
            listed = [_text(f"\n\n{listing}")] if listing and role == "system" and i == 0 else []
            yield from _turn(role, content + listed)
    if prompt and not left_open(messages):
        yield Part("<|assistant|>", True, False)
        if thinking:
            yield Part("<|think|>", True, False)


def contents(content: Any, own: bool = False) -> Iterator[Part]:
    """The parts of a message's content: text, a list of parts of it (content.py), or None."""
    for part in content if isinstance(content, list) else [{"type": "text", "text": content or ""}]:
        yield Part(part["text"], False, own) if part["type"] == "text" else Part("", False, own, part)


def check(messages: list[dict], roles: tuple[str, ...] = ROLES, media: bool = False) -> None:
    """Raise DataError at the first message that is not one; with `media` content may be a list of parts."""
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
        if message.get("prefix") and (message["role"] != "assistant" or i + 1 < len(messages)):
            raise DataError(f"messages[{i}].prefix: only the last message can be continued, and only the assistant's")
        called = message.get("content") is None and calls and message["role"] == "assistant"
        content = message.get("content")
        if media and isinstance(content, list):
            for j, part in enumerate(content):
                check_part(part, f"messages[{i}].content[{j}]", message["role"])
        elif not isinstance(content, str) and not called:
            raise DataError(f"messages[{i}].content: must be text")
        for j, call in enumerate(calls):
            function = call.get("function") if isinstance(call, dict) else None
            if not isinstance(function, dict) or not isinstance(function.get("name"), str) or "arguments" not in function:
                raise DataError(f"messages[{i}].tool_calls[{j}].function: must have name (text) and arguments")


def last_user(messages: list[dict], roles: tuple[str, ...] = ("user",)) -> int:
    """The place of the last message from one of `roles`, or -1."""
    return max((i for i, message in enumerate(messages) if message["role"] in roles), default=-1)


def left_open(messages: list[dict]) -> bool:
    """Whether the last message is one of the assistant that is to be continued."""
    return bool(messages) and bool(messages[-1].get("prefix"))


def _text(text: str) -> Part:
    return Part(text, False, False)


def _turn(opening: str, content: list[Part], closing: str = "end") -> Iterator[Part]:
    yield Part(f"<|{opening}|>", True, False)
    yield from content
    yield Part(f"<|{closing}|>", True, False)


def _said(message: dict, keep_thoughts: bool) -> Iterator[Part]:
    thoughts = message.get("reasoning_content")
    if thoughts and keep_thoughts:
        yield Part("<|think|>", True, True)
        yield Part(thoughts, False, True)
        yield Part("<|/think|>", True, True)
    yield from contents(message.get("content"), own=True)
    for call in message.get("tool_calls") or []:
        function = call["function"]
        arguments = function["arguments"]
        arguments = arguments if isinstance(arguments, str) else _json(arguments)
        yield Part("<|tool_call|>", True, True)
        yield Part(f'{{"name": {_json(function["name"])}, "arguments": {arguments}}}', False, True)
        yield Part("<|/tool_call|>", True, True)
    if not message.get("prefix"):
        yield Part("<|end|>", True, True)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
