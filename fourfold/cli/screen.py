"""A reply on the screen as it comes: thoughts, the answer, calls, and what is drawn."""

import math
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from fourfold.cli.gallery import Gallery, show

if TYPE_CHECKING:
    from fourfold.text.chats import Event

DIM, PLAIN = "\033[2m", "\033[0m"
CLEAR = "\r\033[K"  # the line
# A model may utter terminal controls; a terminal gets none but line ends and tabs.
HARMLESS = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}


class Screen:
    """Prints a reply as it comes: the answer, calls as name(arguments), and thoughts dimmed before it.

    Drawings go to the gallery; the name of the file stands in the answer. Where standard output is no terminal it gets the answer
    alone, and standard error the thoughts.
    """

    def __init__(self, gallery: Gallery | None = None) -> None:
        self.gallery, self.progress = gallery, Progress()
        self.terminal = sys.stdout.isatty()
        self.thoughts = sys.stdout if self.terminal else sys.stderr
        self.thought, self.fresh = False, False  # whether thoughts came last, and whether nothing but line ends came since
        self.answered = False
        self.named = False  # whether the name of a file came last

    def show(self, events: "list[Event]") -> None:
        from fourfold.text.chats import CallArguments, CallBroken, CallFinished, CallStarted, Content, DrawingFinished, Reasoning

        for event in events:
            self.progress.show(event)
            match event:
                case Reasoning(text):
                    self.thought = True
                    shown = self._harmless(text, self.thoughts)
                    dimmed = f"{DIM}{shown}{PLAIN}" if shown and self.thoughts.isatty() else shown
                    print(dimmed, end="", flush=True, file=self.thoughts)
                case CallStarted(_, name):
                    self._answer(f"\n{name}(" if self.answered else f"{name}(")
                case Content(text) | CallArguments(_, text):
                    self._answer(text)
                case DrawingFinished(_, pixels) if self.gallery is not None and pixels is not None:
                    self._answer("\n" if self.answered else "")
                    show(pixels)
                    self._answer(str(self.gallery.add(pixels)))
                    self.named = True
                case CallFinished():
                    self._answer(")")
                case CallBroken():
                    self._answer(" ...)")

    def end(self) -> None:
        """Close the line, or both."""
        self.progress.clear()
        if self.thought and not self.terminal:
            print(file=self.thoughts)
        print(flush=True)

    def _answer(self, text: str) -> None:
        if self.thought:
            print(file=self.thoughts, flush=True)
            self.thought, self.fresh = False, True
        text = text.lstrip("\n") if self.fresh else text
        if self.named and text:
            self.named, text = False, "\n" + text.removeprefix("\n")
        self.fresh, self.answered = self.fresh and not text, self.answered or bool(text)
        print(self._harmless(text, sys.stdout), end="", flush=True)

    def _harmless(self, text: str, stream: TextIO) -> str:
        return text.translate(HARMLESS) if stream.isatty() else text


class Progress:
    """On a terminal, how much of a drawing is there, in a line that goes away."""

    def __init__(self) -> None:
        self.count = self.total = 0

    def show(self, event: "Event") -> None:
        from fourfold.text.chats import DrawingBegun, DrawingCodes, DrawingFinished

        if not sys.stderr.isatty():
            return
        match event:
            case DrawingBegun(grid):
                self.count, self.total = 0, math.prod(grid)
            case DrawingCodes(codes):
                self.count += len(codes)
                print(f"{CLEAR}{DIM}drawing {self.count}/{self.total}{PLAIN}", end="", flush=True, file=sys.stderr)
            case DrawingFinished():
                self.clear()

    def clear(self) -> None:
        if self.total and sys.stderr.isatty():
            print(CLEAR, end="", flush=True, file=sys.stderr)
        self.total = 0


def note(text: str, terminal: bool) -> None:
    """A remark beside the answer, where somebody sits."""
    if terminal:
        print(f"{DIM}{text}{PLAIN}", file=sys.stderr)


@contextmanager
def one_line_warnings() -> Iterator[None]:
    """What is said about files that could be read in part only goes to standard error, a line each."""
    from fourfold.errors import MediaWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MediaWarning)
        yield
    for warning in (warning for warning in caught if issubclass(warning.category, MediaWarning)):
        print(f"warning: {warning.message}", file=sys.stderr)
