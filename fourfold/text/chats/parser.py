"""Reading a reply while it comes: a grammar is a generator that asks for text, and waits where there is none yet.

    def reply(p):                                   # thoughts, then an answer
        yield from p.until("</think>", to=p.think)
        yield from p.until(to=p.say)

Marks are found leftmost first, the longest of those that begin at one place. Whatever may still become a mark is held back, so
that the events do not depend on where the text was cut; what cannot become one goes out at once.
"""

import re
from collections.abc import Callable, Generator
from typing import TypeVar

from fourfold.text.chats.events import CallArguments, CallBroken, CallFinished, CallStarted, Content, Event, Reasoning

T = TypeVar("T")
Steps = Generator[None, None, T]  # yields where more text is needed
Grammar = Callable[["Parser"], Steps[None]]

REST = re.compile(r'(?:[^"\\\n]|\\[^\n])*')  # of a JSON string, up to what ends it or its line


class Parser:
    """Text in, events out. `feed` as often as text comes, `finish` once when the reply is over."""

    def __init__(self, grammar: Grammar) -> None:
        self._text, self._over = "", False
        self.space = ""  # what `expect` last passed over
        self._events: list[Event] = []
        self.calls = 0  # how many have begun
        self._steps = grammar(self)

    def feed(self, text: str) -> list[Event]:
        """The events that this piece of text makes certain."""
        self._text += text
        return self._advance()

    def finish(self) -> list[Event]:
        """The last events: text held back, and the end of a call that was cut off."""
        self._over = True
        return self._advance()

    def _advance(self) -> list[Event]:
        next(self._steps, None)
        events, self._events = self._events, []
        return events

    # What grammars ask for

    def until(self, *marks: str, to: Callable[[str], None]) -> Steps[str | None]:
        """Pass the text before the next of `marks` on to `to`; the mark, or None at the end of the reply."""
        while True:
            mark, start = self._find(marks)
            to(self._take(start))
            if mark is not None:
                return self._take(len(mark))
            if self._over:
                return None
            yield

    def until_json_ends(self, *marks: str, to: Callable[[str], None]) -> Steps[str | None]:
        """`until` where the text is JSON: a mark within a string of it is a part of that string.

        What no quote closes on its line is no string, and the mark stands.
        """
        inside = False
        while True:
            found = yield from self.until('"', *(("\\\\", '\\"', "\n") if inside else ()), *marks, to=to)
            if found is None or (found in marks and not (inside and "\n" not in found and (yield from self._closes()))):
                return found
            if found in ('"', "\n"):
                inside = found == '"' and not inside
            to(found)

    def _closes(self) -> Steps[bool]:
        """Whether a string that has begun ends before its line does; nothing is taken."""
        while True:
            rest = self._text[REST.match(self._text).end() :]
            if self._over or rest not in ("", "\\"):
                return rest.startswith('"')
            yield

    def gather(self, *marks: str) -> Steps[tuple[str, str | None]]:
        """The text before the next of `marks` as a whole, and the mark, or None at the end."""
        pieces: list[str] = []
        mark = yield from self.until(*marks, to=pieces.append)
        return "".join(pieces), mark

    def expect(self, *marks: str) -> Steps[str | None]:
        """The mark that comes next, white space before it aside; None where something else does, and nothing is taken then."""
        while True:
            rest = self._text.lstrip()
            mark = max((m for m in marks if rest.startswith(m)), key=len, default=None)
            longer = any(len(m) > len(rest) and m.startswith(rest) for m in marks)
            if self._over or not longer:
                if mark is not None:
                    self.space = self._take(len(self._text) - len(rest))
                    self._take(len(mark))
                return mark
            yield

    def drop_half(self, *marks: str) -> None:
        """At the end of a reply, forget white space and what may be the first half of one of `marks`."""
        if self._over and any(mark.startswith(self._text.lstrip()) for mark in marks):
            self._text = ""

    def skip(self, text: str) -> Steps[None]:
        """Take `text` away if it comes next, exactly so."""
        while self._text != text and text.startswith(self._text) and not self._over:
            yield
        if self._text.startswith(text):
            self._take(len(text))

    def _take(self, length: int) -> str:
        taken, self._text = self._text[:length], self._text[length:]
        return taken

    def _find(self, marks: tuple[str, ...]) -> tuple[str | None, int]:
        """The first mark that is whole and where it begins, or None and where one may yet begin (or grow longer)."""
        size = len(self._text)
        found = [(at, -len(mark), mark) for mark in marks if (at := self._text.find(mark)) >= 0]
        start, _, mark = min(found, default=(size, 0, None))
        begun = size if self._over else min((self._begun(mark) for mark in marks), default=size)
        return (None, begun) if begun <= start and begun < size else (mark, start)

    def _begun(self, mark: str) -> int:
        """Where the end of the text begins `mark` without completing it."""
        size = len(self._text)
        return next((at for at in range(max(0, size - len(mark) + 1), size) if mark.startswith(self._text[at:])), size)

    # What grammars tell

    def think(self, text: str) -> None:
        if text:
            self._events.append(Reasoning(text))

    def say(self, text: str) -> None:
        if text:
            self._events.append(Content(text))

    def call(self, name: str) -> int:
        """A call begins; its index."""
        self._events.append(CallStarted(self.calls, name))
        self.calls += 1
        return self.calls - 1

    def argue(self, text: str) -> None:
        """A piece of the arguments of the call that began last."""
        last = self._events[-1] if self._events else None
        if isinstance(last, CallArguments):
            self._events[-1] = CallArguments(last.index, last.text + text)
        elif text:
            self._events.append(CallArguments(self.calls - 1, text))

    def end_call(self, complete: bool) -> None:
        """The call that began last is over."""
        index = self.calls - 1
        self._events.append(CallFinished(index) if complete else CallBroken(index))
