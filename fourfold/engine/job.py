"""One running request: its writer, what that wants read, and the sequences that read it."""

import time

from torch import Tensor

from fourfold.engine.pool import Seat
from fourfold.engine.request import Piece, Request, Usage
from fourfold.engine.sequence import span_of
from fourfold.engine.stream import Stream
from fourfold.engine.writer import Read, Writer


class Job:
    """The answer's own sequence is seats[0], its twin's seats[1] where it has one. `wish` is what the writer waits for.

    alone: it is read by itself, since it may be what a forward failed of; fetched: the prefix store has
    been asked for its prompt.
    """

    def __init__(self, request: Request, writer: Writer, stream: Stream) -> None:
        self.request, self.writer, self.stream = request, writer, stream
        self.steps, self.submitted = writer.write(), time.monotonic()
        self.seats: list[Seat] = []
        self.wish: Read | None = None
        self.alone = self.fetched = False

    @property
    def usage(self) -> Usage:
        return self.stream.usage

    @property
    def tokens(self) -> int:
        """Of all sequences, those to be read next included."""
        return sum(map(len, self.seats)) if self.seats else len(self.writer.prompt)

    @property
    def seconds(self) -> float:
        """Since it was submitted."""
        return time.monotonic() - self.submitted

    def go_on(self, logits: Tensor | None) -> Read | None:
        """Let the writer write until it wants something read; None when the answer has ended. `logits`: what it waited for."""
        while True:
            try:
                item = next(self.steps) if logits is None else self.steps.send(logits)
            except StopIteration:
                return None
            if isinstance(item, Read):
                self.wish = item
                return item
            logits = None
            self.give(item)

    def wants(self, word: int | None = None) -> bool:
        """Whether it waits for what follows one word, or this word, and nothing else."""
        wish = self.wish
        plain = wish is not None and not wish.codes and isinstance(wish.own, list) and len(wish.own) == 1
        return plain and (word is None or wish.own == [word])

    def give(self, piece: Piece) -> None:
        """Hand a piece on."""
        usage = self.usage
        usage.completion_tokens = self.writer.made
        if usage.first_token_seconds is None and (piece.tokens or piece.drawing):
            usage.first_token_seconds = self.seconds
            self.stream.prompt_logprobs = self.writer.prompt_logprobs
        self.stream.put(piece)

    def seat(self) -> list[Seat]:
        """Give every sequence what the wish has for it; returns the seats that are new.

        With a twin, both are read in one forward at the end: all but the last token of one's own stands before that.
        """
        assert self.wish is not None
        own, twin = self.wish.own, self.wish.twin
        if not self.seats:
            if twin is not None and len(own) > 1:
                span = span_of(own)
                self.seats = [Seat(span.cut(len(span) - 1, len(span)), span.cut(0, len(span) - 1))]
            else:
                self.seats = [Seat(own)]
            new = list(self.seats)
        else:
            self.seats[0].fresh, new = own, []
        if twin is not None and len(self.seats) == 1:
            self.seats.append(Seat(twin))
            new.append(self.seats[1])
        elif twin is not None:
            self.seats[1].fresh = twin
        return new
