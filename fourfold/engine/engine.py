"""Many requests at once: answers are made side by side, and prompts are read beside them.

Nothing that an answer says depends on its neighbours, on when it came, on whether it gave up its place for a while, on what was
guessed ahead, or on what the prefix store knew.
"""

import threading
from collections.abc import Sequence as Listed
from types import TracebackType
from typing import TYPE_CHECKING

from fourfold.engine.job import Job
from fourfold.engine.line import Line
from fourfold.engine.loop import Loop
from fourfold.engine.request import Answer, EngineBusy, Request, Stats, Usage
from fourfold.engine.stream import Stream
from fourfold.engine.writer import Writer
from fourfold.errors import FourfoldError
from fourfold.model.transformer import Transformer

if TYPE_CHECKING:
    from fourfold.engine.store import PrefixStore

__all__ = ["Engine", "EngineBusy", "Stream"]


class Engine:
    """Makes many answers at once with one model. Its thread starts with the first request.

    most_running: answers in the making; most_waiting: requests in the queue; chunk: tokens of prompts read in one step; memory:
    bytes of the states of running answers, beyond which the newest give theirs up and are read again later; drafts: tokens guessed
    ahead in each step by the model's own multi-token prediction, while that pays (None: one; 0: never). Without a thread, streams
    make the steps that they need, and `step` makes one.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        most_running: int = 16,
        most_waiting: int = 64,
        chunk: int = 512,
        store: "PrefixStore | None" = None,
        memory: int | None = None,
        drafts: int | None = None,
        threaded: bool = True,
    ) -> None:
        self.model, self.line = model, Line(model, most_waiting, memory)
        most = 0 if not len(model.mtp) else 1 if drafts is None else drafts
        self.loop = Loop(model, self.line, most_running, chunk, store, most)
        self._threaded, self._thread = threaded, None
        self._changed, self._closed = threading.Condition(), False

    _thread: threading.Thread | None

    def submit(self, request: Request) -> Stream:
        """Queue a request; from any thread. Raises ConfigError for one that cannot fit, EngineBusy where the queue is full."""
        return self._submit(request, bounded=True)

    def generate(self, requests: Listed[Request]) -> list[Answer]:
        """Answers to all requests, in their order, however many wait already. Raises what `submit` and streams raise."""
        streams: list[Stream] = []
        try:
            streams += [self._submit(request, bounded=False) for request in requests]
            return [stream.answer() for stream in streams]
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise

    def stats(self) -> Stats:
        """From any thread."""
        running = list(self.loop.running)
        return Stats(len(running), len(self.line), **self.loop.counts, state_bytes=int(self.line.bytes(running)))

    def close(self, drain: bool = True) -> None:
        """Finish what runs and waits (drain), or cancel it; no request is taken any more. Waits until that is done."""
        with self._changed:
            self._closed, self.loop.cancels = True, self.loop.cancels or not drain
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()
        while not self._threaded and self.step():
            pass
        if self.loop.prefixes is not None:
            self.loop.prefixes.store.close()

    def __enter__(self) -> "Engine":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(drain=error is None)

    def step(self) -> bool:
        """Go on with everything by one token or chunk; whether anything is left to do. Not beside the engine's own thread."""
        return self.loop.step()

    def _submit(self, request: Request, bounded: bool) -> Stream:
        writer = Writer(self.model, self.model.tokenizer, request)
        stream = Stream(Usage(len(writer.prompt)), None if self._threaded else self.step)
        with self._changed:
            if self._closed:
                raise FourfoldError("engine: is closed; make a new one")
            self.line.join(Job(request, writer, stream), bounded)
            if self._threaded and self._thread is None:
                self._thread = threading.Thread(target=self._run, name="fourfold-engine", daemon=True)
                self._thread.start()
            self._changed.notify_all()
        return stream

    def _run(self) -> None:
        """The engine's thread."""
        busy = False
        while True:
            with self._changed:
                while not (busy or len(self.line) or self._closed):
                    self._changed.wait()
                if not busy and not len(self.line):
                    return
            try:
                busy = self.loop.step()
            except Exception as error:  # nobody is left waiting for an answer that will not come
                self.loop.give_up(error)
                busy = False
