"""Chat formats, one for each published generation, and how a reply is read as it comes (see format.py for use)."""

from fourfold.text.chats.choose import FORMATS, choose
from fourfold.text.chats.events import (
    CallArguments,
    CallBroken,
    CallFinished,
    CallStarted,
    Content,
    DrawingBegun,
    DrawingCodes,
    DrawingFinished,
    Event,
    Message,
    Reasoning,
    ToolCall,
    collect,
)
from fourfold.text.chats.format import ChatFormat
from fourfold.text.chats.parser import Parser

__all__ = [
    "FORMATS",
    "CallArguments",
    "CallBroken",
    "CallFinished",
    "CallStarted",
    "ChatFormat",
    "Content",
    "DrawingBegun",
    "DrawingCodes",
    "DrawingFinished",
    "Event",
    "Message",
    "Parser",
    "Reasoning",
    "ToolCall",
    "choose",
    "collect",
]
