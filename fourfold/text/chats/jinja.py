"""A chat template that none of our formats matches, rendered by Jinja in a sandbox.

What people, tools and the model said is marked before it goes through the template: a hidden character parts every control token
in it, so that the template's own tokens can be told from typed ones afterwards. Replies are read as the closest known format's.
"""

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

from fourfold.errors import DataError
from fourfold.text.chat import Part, left_open
from fourfold.text.chats.chatml import ChatML
from fourfold.text.chats.format import ChatFormat, Request, arguments_object, calls_of, control, marked
from fourfold.text.chats.grammar import thoughts
from fourfold.text.chats.parser import Parser, Steps


class Jinja(ChatFormat):
    """`controls` are the vocabulary's control tokens, `like` the format whose replies are read the same way."""

    name = "jinja"
    roles = ("system", "user", "assistant", "tool", "developer", "latest_reminder")

    def __init__(
        self,
        template: str,
        controls: Iterable[str],
        bos: str | None = None,
        eos: str | None = None,
        like: ChatFormat | None = None,
    ) -> None:
        self.controls = frozenset(controls)
        self.words = {"bos_token": bos or "", "eos_token": eos or ""}
        self.end = eos or ""
        self.like = like or ChatML()
        self.marks = self.like.marks
        self.template = _compile(template)
        self.objects = bool(re.search(r"arguments\s*\|\s*tojson", template))  # wants arguments as such, not as JSON text

    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        hidden = _unused(messages, request.tools)
        given = [_with_objects(message) for message in messages] if self.objects else messages
        safe = _hide([given, list(request.tools)], self.controls, hidden)
        thinks = {"thinking": request.thinking, "enable_thinking": request.thinking, "reasoning_effort": request.effort}
        chat = {"messages": safe[0], "tools": safe[1] or None, "add_generation_prompt": request.prompt}
        try:
            text = self.template.render(**chat, **thinks, **self.words)
        except Exception as error:  # a template is a program, and may fail in any way
            reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"chat_template: cannot write this chat ({reason}); change it, or name a --chat-format") from None
        if left_open(messages) and (said := (safe[0][-1]["content"] or "").strip()):
            text = text[: text.rfind(said) + len(said)]  # templates close every turn
        for part in marked(text, self.controls):
            yield part._replace(text=part.text.replace(hidden, ""))

    def reply(self, message: dict[str, Any], opened: bool = False) -> Iterator[Part]:
        yield from (part for part in self.like.reply(message, opened) if part.text != self.like.end)
        if not message.get("prefix"):
            yield control(self.end, own=True)

    def opened(self, prompt: list[Part]) -> bool:
        return "".join(part.text for part in prompt[-2:]).rstrip().endswith(self.think)

    def grammar(self, p: Parser, opened: bool) -> Steps[None]:
        yield from thoughts(p, opened)
        yield from self.like.grammar(p, False)


def _compile(template: str) -> Any:
    """The template, as the ecosystem sets Jinja up. Raises DataError when it is none, or when Jinja is missing."""
    try:
        import jinja2
        from jinja2.sandbox import ImmutableSandboxedEnvironment
    except ImportError:
        raise DataError("chat_template: of an unknown kind; install jinja2 to use it, or name a --chat-format") from None
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = _tojson
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    try:
        return environment.from_string(template)
    except jinja2.TemplateError as error:
        reason = " ".join(str(error).split())
        raise DataError(f"chat_template: is not a Jinja template ({reason}); name a --chat-format") from None


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **more: Any) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **more)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _now(form: str) -> str:
    import datetime

    return datetime.datetime.now().strftime(form)


def _with_objects(message: dict[str, Any]) -> dict[str, Any]:
    """The message, its calls with their arguments as objects."""
    functions = [function | {"arguments": arguments_object(function)} for function in calls_of(message)]
    calls = [call | {"function": function} for call, function in zip(message.get("tool_calls") or [], functions, strict=True)]
    return message | {"tool_calls": calls} if calls else message


def _unused(*values: Any) -> str:
    """A character for private use that no text in the values has."""
    text = json.dumps(values, ensure_ascii=False, default=str)
    return next(chr(code) for code in range(0xE000, 0xF8FF) if chr(code) not in text)


def _hide(value: Any, controls: Iterable[str], hidden: str) -> Any:
    """The same value with `hidden` after the first character of every control token in its texts and keys."""
    if isinstance(value, dict):
        return {_hide(key, controls, hidden): _hide(item, controls, hidden) for key, item in value.items()}
    if isinstance(value, list):
        return [_hide(item, controls, hidden) for item in value]
    if isinstance(value, str):
        for token in controls:
            value = value.replace(token, token[0] + hidden + token[1:])
    return value
