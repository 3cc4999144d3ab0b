"""Who is next: requests that wait, answers that gave up their places, and the memory that decides about both."""

import threading
from collections import deque
from collections.abc import Iterable

from fourfold.engine.job import Job
from fourfold.engine.request import EngineBusy
from fourfold.model.transformer import Transformer

HEADROOM = 64  # tokens that every answer should be able to go on before memory runs out, when one more is taken in


class Line:
    """The queue of one engine. Anybody may `join` it from any thread; the rest is for whoever runs the engine.

    memory: bytes of the states of running answers, None for no limit; what counts is rows in use: buffers are larger.
    """

    def __init__(self, model: Transformer, most: int, memory: int | None) -> None:
        self.most, self.memory = most, memory
        self.pace = 1.0  # seconds between answers that end, averaged
        self._waiting, self._given_up, self._lock = deque[Job](), deque[Job](), threading.Lock()
        empty = model.new_cache(1)
        self._per_token, self._per_seat = empty.bytes_per_token(), empty.fixed_bytes()

    def __len__(self) -> int:
        return len(self._waiting) + len(self._given_up)

    def join(self, job: Job, bounded: bool) -> None:
        """Wait. Raises EngineBusy where as many do as may."""
        with self._lock:
            if bounded and len(self._waiting) >= self.most:
                raise EngineBusy(len(self._waiting), max(1.0, self.pace * len(self._waiting)))
            self._waiting.append(job)

    def return_to(self, job: Job) -> None:
        """A running job gives up its place, and is the first to get one again."""
        with self._lock:
            self._given_up.appendleft(job)

    def jobs(self) -> list[Job]:
        with self._lock:
            return [*self._given_up, *self._waiting]

    def leave(self, job: Job) -> None:
        """Forget a job, here or not."""
        with self._lock:
            for queue in (self._given_up, self._waiting):
                if job in queue:
                    queue.remove(job)

    def next(self, running: list[Job]) -> Job | None:
        """The next job, taken out, unless memory does not suffice for it beside those that run."""
        with self._lock:
            queue = self._given_up or self._waiting
            if not queue:
                return None
            jobs = [*running, queue[0]]
            if running and self.memory is not None and self.bytes(jobs) + len(jobs) * HEADROOM * self._per_token > self.memory:
                return None
            return queue.popleft()

    def too_many(self, running: list[Job]) -> bool:
        """Whether some have to give up their places; the oldest goes on whatever it takes."""
        return self.memory is not None and len(running) > 1 and self.bytes(running) > self.memory

    def bytes(self, jobs: Iterable[Job]) -> float:
        """Of the states of some jobs, once all that they want read has been read."""
        return sum(job.tokens * self._per_token + max(len(job.seats), 1) * self._per_seat for job in jobs)
