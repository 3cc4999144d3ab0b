"""What a reply is made of, as it comes and as a whole.

A parser (parser.py) turns the text of a reply into events; `collect` puts the events of a whole reply together. Between two
events of one kind the text may be cut anywhere: only the sum of the pieces means something.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reasoning:
    """A piece of what the model thinks before it answers."""

    text: str


@dataclass(frozen=True)
class Content:
    """A piece of the answer, or of anything that fits nowhere else: no text of a reply is ever lost."""

    text: str


@dataclass(frozen=True)
class CallStarted:
    """A tool call begins: its place among the reply's calls, and the tool's name."""

    index: int
    name: str


@dataclass(frozen=True)
class CallArguments:
    """A piece of a call's arguments, as JSON text."""

    index: int
    text: str


@dataclass(frozen=True)
class CallFinished:
    """A call is complete; its arguments are JSON if the model wrote JSON."""

    index: int


@dataclass(frozen=True)
class CallBroken:
    """A call ended before its grammar allows: cut off, or followed by something else, which then comes as Content."""

    index: int


Event = Reasoning | Content | CallStarted | CallArguments | CallFinished | CallBroken


@dataclass
class ToolCall:
    """A call in a reply. `arguments` is JSON text as the model wrote it; `complete` says whether the call was."""

    name: str
    arguments: str = ""
    complete: bool = False


@dataclass
class Message:
    """A whole reply."""

    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """In the form that `render` takes (OpenAI's); empty parts are left out, content is None beside calls alone."""
        message: dict[str, Any] = {"role": "assistant", "content": self.content or (None if self.tool_calls else "")}
        if self.reasoning_content:
            message["reasoning_content"] = self.reasoning_content
        if self.tool_calls:
            calls = ({"name": call.name, "arguments": call.arguments} for call in self.tool_calls)
            message["tool_calls"] = [{"type": "function", "function": call} for call in calls]
        return message


def collect(events: Iterable[Event]) -> Message:
    """The reply that these events tell."""
    message = Message()
    for event in events:
        match event:
            case Reasoning(text):
                message.reasoning_content += text
            case Content(text):
                message.content += text
            case CallStarted(_, name):
                message.tool_calls.append(ToolCall(name))
            case CallArguments(index, text):
                message.tool_calls[index].arguments += text
            case CallFinished(index):
                message.tool_calls[index].complete = True
            case CallBroken():
                pass
    return message
