"""Prompts being read: a chunk of a long one at a time, or several short ones together, in caches of their own.

They do not share a forward with answers that go on: attention pads to the longest chunk, so that every answer's single token would
cost as much as the prompt's.
"""

from collections import deque

from torch import Tensor

from fourfold.engine.job import Job
from fourfold.engine.pool import Seat, Seen, beside
from fourfold.engine.speculate import TAIL
from fourfold.modality import Modality
from fourfold.model.inputs import Batch
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer

WATCHED = 128  # rows of logits that are looked at together


class Reading:
    """One sequence that is being read: all of it, or all but its fresh token where that is to be read beside a twin.

    Its cache has seen `place` of `stop` tokens.
    """

    def __init__(self, model: Transformer, job: Job, seat: Seat, cache: Cache) -> None:
        assert job.wish is not None
        self.job, self.seat, self.cache = job, seat, cache
        self.whole = job.wish.twin is None
        self.place, self.stop = cache.lengths[0], len(seat) if self.whole else seat.length
        self._start, self._rest = self.place, model.batch([seat.whole().cut(self.place, self.stop)])
        self._watch = job.wish.watch if seat is job.seats[0] else None
        self.read = 0  # tokens in the last forward

    @property
    def left(self) -> int:
        return self.stop - self.place

    def part(self, most: int) -> Batch:
        """The next tokens."""
        start = self.place - self._start
        return self._rest.cut(start, start + most)

    def take(self, streams: Tensor, model: Transformer) -> None:
        """Some more have been read: the streams [n, ...] behind them."""
        if self._watch is not None:
            for start in range(0, len(streams), WATCHED):
                hidden = model.norm(model.collapse(streams[start : start + WATCHED]))
                self._watch(self.place + start, model.logits(hidden))
        self.read = len(streams)
        self.place += self.read

    def seen(self, streams: Tensor) -> Seen:
        """The words at the end of what was read, for drafts: those of the last forward's streams that TAIL allows."""
        most = min(TAIL, len(streams))
        tokens, modality = (x[len(x) - most :].tolist() for x in (self._rest.tokens, self._rest.modality))
        count = next((i for i, kind in enumerate(reversed(modality)) if kind != Modality.TEXT), most)
        return Seen(tokens[most - count :], self.place - count, streams[len(streams) - count :])


class Reader:
    """What waits to be read, oldest first; a long prompt goes behind the others after each chunk."""

    def __init__(self, model: Transformer, chunk: int) -> None:
        self.model, self.chunk = model, chunk
        self.queue: deque[Reading] = deque()

    def drop(self, job: Job) -> None:
        """Forget what a job wanted read."""
        self.queue = deque(reading for reading in self.queue if reading.job is not job)

    def next(self) -> list[Reading]:
        """What to read in one forward, taken out of the queue: the first, and shorter ones where their padding fits in a chunk."""
        if not self.queue:
            return []
        group = [self.queue.popleft()]
        longest = group[0].left
        for reading in [] if group[0].job.alone else list(self.queue):
            longer = max(longest, reading.left)
            if not reading.job.alone and longer * (len(group) + 1) <= self.chunk:
                self.queue.remove(reading)
                group.append(reading)
                longest = longer
        return group

    def read(self, group: list[Reading]) -> tuple[Cache, list[Tensor]]:
        """Read a chunk of each; their common cache, which is used up, and the streams [n, ...] behind what was read of each.

        A group of several is read to its end.
        """
        cache = group[0].cache
        for other in group[1:]:
            cache.join(other.cache)
        batch = beside([reading.part(self.chunk) for reading in group])
        streams = self.model.streams(batch, cache).split(list(batch.lengths))
        for reading, part in zip(group, streams, strict=True):
            reading.take(part, self.model)
        return cache, list(streams)
