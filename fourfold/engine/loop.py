"""The steps of an engine: one forward over all running answers, each reading what it chose last, and one over a chunk of prompts;
then every answer is told its logits and chooses on.
"""

import time
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fourfold.engine.job import Job
from fourfold.engine.line import Line
from fourfold.engine.pool import Pool, Seat, Seen
from fourfold.engine.prefixes import Prefixes
from fourfold.engine.reading import Reader, Reading
from fourfold.engine.request import Piece
from fourfold.engine.speculate import Drafter, Trial
from fourfold.engine.threads import Threads
from fourfold.errors import FourfoldError
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer
from fourfold.planner.count import count

if TYPE_CHECKING:
    from fourfold.engine.store import PrefixStore

MOST_FAILURES = 3  # forwards over the pool that fail one after another, before an answer is given up

Heard = list[tuple[Job, Tensor]]  # who waits for which logits


class Loop:
    """What runs, and where its sequences are. For one thread at a time."""

    def __init__(
        self, model: Transformer, line: Line, most_running: int, chunk: int, store: "PrefixStore | None", drafts: int
    ) -> None:
        self.model, self.line, self.most_running = model, line, most_running
        self.prefixes = None if store is None else Prefixes(model, store)
        self.pool, self.reader, self.threads = Pool(model, spare_bytes(model)), Reader(model, chunk), Threads(model)
        self.drafter, self.trial = Drafter(model, drafts) if drafts else None, Trial()
        self.running: list[Job] = []  # oldest first
        self.cancels = False  # everything, from now on
        names = ("steps", "tokens_in", "tokens_out", "preemptions", "drafts_offered", "drafts_accepted")
        self.counts = dict.fromkeys(names, 0)
        self._failures = self._too_many = 0  # forwards over the pool that failed, and over how many sequences

    @torch.inference_mode()
    def step(self) -> bool:
        """Go on with everything by one token or chunk; whether anything is left to do."""
        self._end_cancelled()
        self._make_room()
        self._take_in()
        begun, made, reads = time.perf_counter(), self.counts["tokens_out"], bool(self.reader.queue)
        for job, logits in [*self._decode(), *self._prefill()]:
            self._tell(job, logits)
        self.pool.cut_back()
        if self.drafter is not None and not reads and self.pool.seats:
            self.trial.note(self.counts["tokens_out"] - made, time.perf_counter() - begun)
        self.counts["steps"] += 1
        return bool(self.running) or len(self.line) > 0

    def give_up(self, error: Exception) -> None:
        """Something broke that should not: everybody is told, and all begins anew."""
        for job in [*self.running, *self.line.jobs()]:
            self.line.leave(job)
            job.stream.put(told(error))
        self.running, self.pool = [], Pool(self.model, self.pool.spare)
        self.reader = Reader(self.model, self.reader.chunk)
        self.drafter = self.drafter and Drafter(self.model, self.drafter.most)

    # Who runs

    def _end_cancelled(self) -> None:
        for job in [*self.running, *self.line.jobs()]:
            if self.cancels or job.stream.cancelled:
                self._end(job)
                job.give(Piece("", finish_reason="cancelled"))

    def _make_room(self) -> None:
        """Let the newest give up their places while memory does not suffice."""
        while self.line.too_many(self.running):
            job = self.running[-1]
            self._end(job)
            self.line.return_to(job)
            self.counts["preemptions"] += 1

    def _take_in(self) -> None:
        """Start what there is room for."""
        while len(self.running) < self.most_running and (job := self.line.next(self.running)):
            self.running.append(job)
            if job.wish is None:
                job.usage.queued_seconds = job.seconds
                self._go_on(job, None)
            else:
                self._seat(job, job.seats)

    def _end(self, job: Job) -> None:
        """Forget a job and its states."""
        self._unseat(job)
        self.line.leave(job)
        if job in self.running:
            self.running.remove(job)

    def _fail(self, job: Job, error: Exception) -> None:
        self._end(job)
        job.stream.put(told(error))

    # Where its sequences are

    def _tell(self, job: Job, logits: Tensor) -> None:
        """Tell an answer what it waits for: logits [1 or 2, ...], or [1 + drafts, V], of which a row counts if its draft stands."""
        own = job.seats[0]
        drafts, own.drafts = own.drafts, []
        read = len(logits) - len(drafts)
        self._go_on(job, logits[:read])
        stood = 0
        while stood < len(drafts) and job in self.running and job.wants(drafts[stood]):
            own.take()
            stood += 1
            self._go_on(job, logits[stood : stood + 1])
        self.counts["drafts_offered"] += len(drafts)
        self.counts["drafts_accepted"] += stood
        job.usage.accepted_drafts += stood
        if own.seen is not None:
            own.seen = own.seen.first(len(own.seen.tokens) - len(drafts) + stood)

    def _go_on(self, job: Job, logits: Tensor | None) -> None:
        """Tell an answer what it waits for, and see to what it wants next."""
        made = job.writer.made
        try:
            wish = job.go_on(logits)
        except Exception as error:
            self._fail(job, error)
            return
        self.counts["tokens_out"] += job.writer.made - made
        if wish is None:
            self.line.pace += 0.1 * (job.seconds / len(self.running) - self.line.pace)
            self._end(job)
            return
        if wish.twin is None and len(job.seats) > 1:
            self.pool.leave(job.seats.pop())
        self._seat(job, job.seat())

    def _seat(self, job: Job, new: list[Seat]) -> None:
        """Find places for new sequences, or for all of a job that has none: what they hold is read first."""
        if not new:
            return
        try:
            for seat in new:
                cache = self._known(job, seat)
                reading = Reading(self.model, job, seat, cache)
                if reading.left:
                    self.reader.queue.append(reading)
                else:
                    self.pool.enter(cache, [seat])
        except Exception as error:
            self._fail(job, error)
        else:
            self._settle(job)

    def _settle(self, job: Job) -> None:
        """Once all its sequences are in the pool, a job takes part in every step."""
        if all(seat in self.pool.seats for seat in job.seats):
            for seat in job.seats:
                seat.ready = True

    def _unseat(self, job: Job) -> None:
        """Forget the states of a job."""
        self.reader.drop(job)
        for seat in job.seats:
            seat.ready = False
            if seat in self.pool.seats:
                self.pool.leave(seat)
            if self.drafter is not None:
                self.drafter.leave(seat)

    def _known(self, job: Job, seat: Seat) -> Cache:
        """A cache of what the store knows of a sequence; an empty one where it is not asked."""
        assert job.wish is not None
        wanted = seat is job.seats[0] and job.request.use_store and job.wish.watch is None
        if self.prefixes is None or not wanted:
            job.usage.miss_reason = job.usage.miss_reason or "off"
            return self.model.new_cache(1)
        cache, reason = self.prefixes.fetch(seat, job.request.namespace)
        if not job.fetched:
            job.fetched = True
            job.usage.cached_tokens, job.usage.miss_reason = min(cache.lengths[0], job.usage.prompt_tokens), reason
        return cache

    def _keep(self, job: Job, seat: Seat, cache: Cache, sequence: int, length: int) -> None:
        if self.prefixes is not None:
            self.prefixes.keep(seat, job.request.namespace, cache, sequence, length)

    # Forwards

    def _decode(self) -> Heard:
        """One token, or a few, of every answer in the pool."""
        jobs = [job for job in self.running if job.seats[0].ready]
        if not jobs:
            return []
        self.threads.suit(len(self.pool.seats))
        try:
            self._draft(jobs)
            streams, ends = self.pool.read()
            last = {seat: end - 1 for seat, end in zip(self.pool.seats, ends, strict=True)}
            rows = [[row for seat in job.seats for row in range(last[seat] - len(seat.drafts), last[seat] + 1)] for job in jobs]
            heard = self._logits(streams, list(zip(jobs, rows, strict=True)))
        except Exception as error:
            self._recover(error)
            return []
        if len(self.pool.seats) >= self._too_many:
            self._failures = self._too_many = 0
        places = {seat: (group.cache, i) for group in self.pool.groups for i, seat in enumerate(group.seats)}
        for job in jobs:
            own = job.seats[0]
            if self.drafter is not None and isinstance(own.fresh, list):
                tokens = [*own.fresh, *own.drafts]
                own.seen = Seen(tokens, own.length, streams[last[own] + 1 - len(tokens) : last[own] + 1])
            for seat in job.seats:
                seat.take()
            self._keep(job, own, *places[own], own.length)
        return heard

    def _draft(self, jobs: list[Job]) -> None:
        """Guess what follows the words that answers chose last."""
        if self.drafter is None or not self.trial.drafts:
            return
        try:
            self.drafter.draft([job.seats[0] for job in jobs if job.wants() and job.seats[0].seen is not None])
        except Exception:  # answers do without
            self.drafter = None
            for job in jobs:
                job.seats[0].drafts, job.seats[0].seen = [], None

    def _prefill(self) -> Heard:
        """A chunk of what is to be read before answers can go on."""
        group = self.reader.next()
        if not group:
            return []
        self.threads.suit(sum(min(reading.left, self.reader.chunk) for reading in group))
        try:
            cache, streams = self.reader.read(group)
            done = [(reading.job, [row]) for row, reading in enumerate(group) if reading.whole and not reading.left]
            heard = self._logits(torch.cat([part[-1:] for part in streams]), done)
        except Exception as error:
            self._part(group, error)
            return []
        for place, reading in enumerate(group):
            self._keep(reading.job, reading.seat, cache, place, reading.place)
        self.counts["tokens_in"] += sum(reading.read for reading in group)
        if group[0].left:
            self.reader.queue.append(group[0])
            return heard
        self.pool.enter(cache, [reading.seat for reading in group])
        for reading, part in zip(group, streams, strict=True):
            reading.job.alone = False
            if reading.whole:
                reading.seat.take()
                reading.seat.seen = None if self.drafter is None else reading.seen(part)
            self._settle(reading.job)
        return heard

    def _logits(self, streams: Tensor, rows: list[tuple[Job, list[int]]]) -> Heard:
        """What jobs wait for, from some rows each of the streams [N, n, d]; each head once for all."""
        heard: Heard = []
        for codes, head in ((False, self.model.logits), (True, self.model.code_logits)):
            mine = [(job, own) for job, own in rows if job.wish is not None and job.wish.codes is codes]
            if mine:
                hidden = self.model.collapse(streams[[row for _, own in mine for row in own]])
                logits = head(self.model.norm(hidden))
                parts = logits.split([len(own) for _, own in mine])
                heard += [(job, part) for (job, _), part in zip(mine, parts, strict=True)]
        return heard

    def _part(self, group: list[Reading], error: Exception) -> None:
        """Reading failed: it ends the one request that was read, and of several each is tried alone."""
        for job in {reading.job: None for reading in group}:
            if len(group) == 1:
                self._fail(job, error)
            else:
                self._retry(job)

    def _recover(self, error: Exception) -> None:
        """A forward over the pool failed, and left it in no certain state: all are read again, each alone, to fail alone if at all.

        If they can be read, and still not go on together, one is given up: one that draws with a twin, since only there is
        something read in the pool alone, or the newest.
        """
        jobs = [job for job in self.running if any(seat in self.pool.seats for seat in job.seats)]
        self._failures, self._too_many = self._failures + 1, len(self.pool.seats)
        self.pool = Pool(self.model, self.pool.spare)
        if self._failures >= MOST_FAILURES or len(jobs) == 1:
            worst = next((job for job in reversed(jobs) if len(job.seats) > 1), jobs[-1])
            jobs.remove(worst)
            self._fail(worst, error)
        for job in jobs:
            self._retry(job)

    def _retry(self, job: Job) -> None:
        job.alone = True
        self._unseat(job)
        self._seat(job, job.seats)


def spare_bytes(model: Transformer) -> float:
    """Of the weights that a forward over one token reads."""
    return count(model.config).active * model.embed.weight.element_size()


def told(error: Exception) -> FourfoldError:
    """An error as those are told of it who wait for an answer."""
    if isinstance(error, FourfoldError):
        return error
    told = FourfoldError(f"engine: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no more is known'}")
    told.__cause__ = error
    return told
