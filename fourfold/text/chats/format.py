"""The protocol that every chat format shares: messages to prompt parts, and the text of a reply back to a message.

    chat = choose(tokenizer)                                # or FORMATS["v4"]()
    ids, opened = chat.prompt(tokenizer, messages, tools=tools, thinking=True)
    for piece, events in chat.read(generate(model, ids, sampling, tokenizer), tokenizer, opened):
        ...

A prompt is a list of parts, control tokens and texts. Control tokens go in by id, and what people, tools or the model said is
encoded as ordinary text, whatever it spells, so that nobody can type a control token. `parse` undoes `reply`, as far as the
published grammar allows: most have no way to quote their own tags.
"""

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fourfold.errors import DataError
from fourfold.text import chat
from fourfold.text.chat import ROLES, Part
from fourfold.text.chats.events import Event, Message, collect
from fourfold.text.chats.parser import Parser, Steps
from fourfold.text.chats.tokens import THINK
from fourfold.text.content import Show, text_only
from fourfold.text.settings import TextSettings

if TYPE_CHECKING:
    from fourfold.engine.generate import Piece
    from fourfold.media.spans import Span
    from fourfold.text.tokenizer import Tokenizer

# What people may ask for, and what it means to a model that knows none, high and max (as the public API maps them).
EFFORTS: dict[str | None, str | None] = {None: None, "none": "none", "xhigh": "max", "max": "max"}
EFFORTS |= dict.fromkeys(("minimal", "low", "medium", "high"), "high")


@dataclass(frozen=True)
class Request:
    """What is asked of a prompt, checked. Thinking is off where effort is none, `prompt` where a last message is continued."""

    tools: tuple[dict[str, Any], ...] = ()
    thinking: bool = False
    effort: str | None = None
    response_format: dict[str, Any] | None = None
    prompt: bool = True

    @property
    def functions(self) -> list[dict[str, Any]]:
        return [tool["function"] for tool in self.tools]


class ChatFormat(ABC):
    """One generation's way to write a chat."""

    name: str
    end: str  # ends a turn of the assistant
    required: tuple[str, ...] = ()  # control tokens without which a vocabulary is not this generation's
    marks: tuple[str, ...] = ()  # control tokens that a reply may hold
    think = THINK  # opens thoughts
    roles: tuple[str, ...] = ROLES
    has_tools = True
    has_media = False

    @classmethod
    def of(cls, settings: TextSettings) -> "ChatFormat":
        """This format with what a folder says about it (fixed wordings, for one); by default nothing."""
        return cls()

    def render(
        self,
        messages: list[dict[str, Any]],
        *,
        tools: list[dict[str, Any]] | None = None,
        thinking: bool = False,
        reasoning_effort: str | None = None,
        response_format: dict[str, Any] | None = None,
        add_generation_prompt: bool = True,
    ) -> list[Part]:
        """A chat as parts; with `add_generation_prompt` it ends where the assistant begins.

        Messages and tools are in OpenAI's form. A last assistant message with `prefix` true is left open, to be continued.
        Effort, response format and thinking do nothing in a generation that has no words for them. Raises DataError naming the
        message or option that is wrong.
        """
        chat.check(messages, self.roles, media=True)
        if not self.has_media:
            messages = text_only(messages, self.name)
        if not messages:
            raise DataError("messages: empty; give at least one")
        if not self.has_tools and (tools or any(message.get("tool_calls") for message in messages)):
            raise DataError(f"tools: chat format {self.name} has no tool calls; leave them out")
        if not isinstance(reasoning_effort, str | None) or reasoning_effort not in EFFORTS:
            raise DataError(f"reasoning_effort: {reasoning_effort} is none of {', '.join(e for e in EFFORTS if e)}")
        effort = EFFORTS[reasoning_effort]
        thinking = thinking and effort != "none"
        check_tools(tools)
        wanted = None if response_format == {"type": "text"} else response_format
        prompt = add_generation_prompt and not chat.left_open(messages)
        request = Request(tuple(tools or ()), thinking, effort, wanted, prompt)
        return [part for part in self.parts(messages, request) if part.text or part.media]

    def text(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """`render` as one text."""
        return "".join(part.text for part in self.render(messages, **options))

    def encode(self, tokenizer: "Tokenizer", messages: list[dict[str, Any]], **options: Any) -> list[int]:
        """`render` as token ids. Raises DataError when the vocabulary is not of this generation."""
        return self.prompt(tokenizer, messages, **options)[0]

    def prompt(self, tokenizer: "Tokenizer", messages: list[dict[str, Any]], **options: Any) -> tuple[list[int], bool]:
        """`encode`, and whether the prompt ends in open thoughts: not every one does that was asked to."""
        self.check_vocabulary(tokenizer)
        parts = self.render(messages, **options)
        return chat.encode(parts, tokenizer)[0], self.opened(parts)

    def span(
        self, tokenizer: "Tokenizer", messages: list[dict[str, Any]], show: Show | None = None, **options: Any
    ) -> "tuple[Span, bool]":
        """`prompt` as a Span: content may be a list of parts (content.py), of which `show` reads those that come as files."""
        self.check_vocabulary(tokenizer)
        parts = self.render(messages, **options)
        return chat.lay_out(parts, tokenizer, show), self.opened(parts)

    def check_vocabulary(self, tokenizer: "Tokenizer") -> None:
        """Raise DataError when a token is missing without which a vocabulary is not of this generation."""
        if missing := [token for token in self.required if token not in tokenizer.controls]:
            said = f"chat format {self.name}: the tokenizer has no {missing[0]}"
            raise DataError(f"{said}; name another with --chat-format")

    def opened(self, prompt: list[Part]) -> bool:
        """Whether a rendered prompt ends in open thoughts."""
        return next((part.text for part in reversed(prompt) if part.control), "") == self.think

    def parser(self, opened: bool = False) -> Parser:
        """Reads one reply; `opened` says whether its prompt ended in open thoughts."""
        return Parser(lambda p: self.grammar(p, opened))

    def parse(self, text: str, opened: bool = False) -> Message:
        """A whole reply as a message; the mark that ends a turn may be there or not."""
        parser = self.parser(opened)
        return collect(parser.feed(text.removesuffix(self.end)) + parser.finish())

    def read(
        self, pieces: "Iterable[Piece]", tokenizer: "Tokenizer", opened: bool = False
    ) -> Iterator[tuple["Piece", list[Event]]]:
        """A reply while it is generated: each step with its events."""
        parser, ids = self.parser(opened), {mark: tokenizer.special(mark) for mark in self.marks if mark in tokenizer.controls}
        hidden = {id: mark for mark, id in ids.items() if id in tokenizer.special_ids}  # what decoding leaves out of the text
        for piece in pieces:
            # Such a token adds no text of its own: what comes with it was held back, and said before it.
            events = parser.feed(piece.text + "".join(hidden.get(token, "") for token in piece.tokens))
            events += [piece.drawing] if piece.drawing else []
            yield piece, events + (parser.finish() if piece.finish_reason else [])

    @abstractmethod
    def parts(self, messages: list[dict[str, Any]], request: Request) -> Iterator[Part]:
        """The chat in order; messages and request are checked."""

    @abstractmethod
    def reply(self, message: dict[str, Any], opened: bool = False) -> Iterator[Part]:
        """A whole reply as the model says it, from the end of the prompt (in open thoughts, or not) to the end of the turn."""

    @abstractmethod
    def grammar(self, p: Parser, opened: bool) -> Steps[None]:
        """How a reply is read."""


def control(token: str, own: bool = False) -> Part:
    return Part(token, True, own)


def plain(text: str | None, own: bool = False) -> Part:
    return Part(text or "", False, own)


def marked(text: str, marks: Iterable[str], own: bool = False) -> Iterator[Part]:
    """A text of the format's own, in which `marks` are control tokens."""
    pattern = "|".join(re.escape(mark) for mark in sorted(marks, key=len, reverse=True))
    for i, piece in enumerate(re.split(f"({pattern})", text) if pattern else [text]):
        yield Part(piece, i % 2 == 1, own)


def to_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def arguments_text(function: dict[str, Any], marks: Iterable[str] = ()) -> str:
    """A call's arguments as JSON text, in which `marks` cannot be read as tags: \\u003c stands for their <."""
    arguments = function["arguments"]
    return quoted(arguments if isinstance(arguments, str) else to_json(arguments), marks)


def quoted(text: str, marks: Iterable[str]) -> str:
    """JSON text that says the same without spelling `marks`, which it can only hold inside strings."""
    for mark in marks:
        text = text.replace(mark, f"\\u{ord(mark[0]):04x}{mark[1:]}")
    return text


def arguments_object(function: dict[str, Any]) -> dict[str, Any]:
    """A call's arguments as an object; what is none becomes its only field, `arguments`."""
    arguments = function["arguments"]
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return {"arguments": arguments}
    return arguments if isinstance(arguments, dict) else {"arguments": function["arguments"]}


def calls_of(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The functions that a message calls."""
    return [call["function"] for call in message.get("tool_calls") or []]


def check_tools(tools: list[dict[str, Any]] | None) -> None:
    """Raise DataError at the first tool that is none in OpenAI's form."""
    if not isinstance(tools, list | None):
        raise DataError("tools: must be a list of objects with type and function")
    for i, tool in enumerate(tools or []):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise DataError(f"tools[{i}].function: must be an object with a name (text)")
