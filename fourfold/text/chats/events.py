"""What a reply is made of, as it comes and as a whole.

A parser (parser.py) turns the text of a reply into events; `collect` puts the events of a whole reply together. Between two
events of one kind the text may be cut anywhere: only the sum of the pieces means something.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


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


@dataclass(frozen=True)
class DrawingBegun:
    """A picture of (rows, columns) codes begins, or a clip of (frames, rows, columns)."""

    grid: tuple[int, ...]


@dataclass(frozen=True)
class DrawingCodes:
    """The next codes of it: row by row, frame by frame."""

    codes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DrawingFinished:
    """It is whole: all codes int64 [*grid], and uint8 [frames, 3, H, W], what the codec makes of them (None without one)."""

    codes: "Tensor"
    pixels: "Tensor | None" = None


DrawingEvent = DrawingBegun | DrawingCodes | DrawingFinished
Event = Reasoning | Content | CallStarted | CallArguments | CallFinished | CallBroken | DrawingEvent


@dataclass
class ToolCall:
    """A call in a reply. `arguments` is JSON text as the model wrote it; `complete` says whether the call was."""

    name: str
    arguments: str = ""
    complete: bool = False


@dataclass
class Message:
    """A whole reply. Each of its drawings stands before a place of the content."""

    content: str = ""
    reasoning_content: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    drawings: list[tuple[int, "Tensor"]] = field(default_factory=list)

    def answer(self) -> "Message":
        """Without thoughts, and the line ends between them and the content."""
        text = self.content.lstrip("\n") if self.reasoning_content else self.content
        cut = len(self.content) - len(text)
        return Message(text, "", self.tool_calls, [(max(place - cut, 0), codes) for place, codes in self.drawings])

    def parts(self) -> list[dict[str, Any]]:
        """Texts and drawings in their order (content.py)."""
        made: list[dict[str, Any]] = []
        start = 0
        for place, codes in self.drawings:
            kind = "draw" if codes.dim() == 2 else "film"
            made += [{"type": "text", "text": self.content[start:place]}, {"type": kind, "codes": codes}]
            start = place
        return [*made, {"type": "text", "text": self.content[start:]}]

    def to_dict(self) -> dict[str, Any]:
        """In the form that `render` takes (OpenAI's); empty parts are left out, content is None beside calls alone."""
        said = self.parts() if self.drawings else self.content
        message: dict[str, Any] = {"role": "assistant", "content": said or (None if self.tool_calls else "")}
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
            case DrawingFinished(codes):
                message.drawings.append((len(message.content), codes))
            case _:
                pass
    return message
