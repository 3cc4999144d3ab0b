"""One answer on its way from the engine's thread to whoever waits for it, in a thread or in an event loop."""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator

from fourfold.engine.request import Answer, Chosen, Piece, Usage
from fourfold.errors import FourfoldError
from fourfold.text.chats.events import DrawingFinished


class Stream:
    """Pieces of one answer, for one reader: `for piece in stream`, or `async for`. The last has a finish reason.

    An error inside the engine is raised where the stream is read. usage and prompt_logprobs are filled as the answer is made; the
    latter is whole when the first piece comes.
    """

    def __init__(self, usage: Usage, step: Callable[[], bool] | None = None) -> None:
        """step: what makes the answer go on, where no thread does."""
        self.usage, self.prompt_logprobs = usage, None
        self._step, self._items, self._changed = step, deque[Piece | BaseException](), threading.Condition()
        self._wake: Callable[[], object] | None = None
        self._cancelled = self._ended = False

    usage: Usage
    prompt_logprobs: list[Chosen] | None

    def cancel(self) -> None:
        """End the answer before the next step, with the reason "cancelled" unless it has ended; from any thread, any time."""
        self._cancelled = True

    @property
    def cancelled(self) -> bool:
        """Whether `cancel` has been called."""
        return self._cancelled

    @property
    def unread(self) -> int:
        """Pieces that wait to be read."""
        return len(self._items)

    def put(self, item: Piece | BaseException) -> None:
        """What the engine has to say: a piece, or what went wrong. Nothing may follow the last piece or an error."""
        with self._changed:
            self._items.append(item)
            self._changed.notify()
            wake = self._wake
        if wake is not None:
            with contextlib.suppress(RuntimeError):  # its event loop is closed, and nobody reads any more
                wake()

    def __iter__(self) -> Iterator[Piece]:
        while not self._ended:
            yield self._taken(self._wait())

    def __aiter__(self) -> AsyncIterator[Piece]:
        return self._follow()

    async def _follow(self) -> AsyncIterator[Piece]:
        loop, ready = asyncio.get_running_loop(), asyncio.Event()
        with self._changed:
            self._wake = lambda: loop.call_soon_threadsafe(ready.set)
        try:
            while not self._ended:
                ready.clear()
                while self._items and not self._ended:
                    yield self._taken(self._items.popleft())
                if self._ended:
                    return
                if self._step is not None:
                    self._step()
                    await asyncio.sleep(0)
                elif not self._items:
                    await ready.wait()
        finally:
            self._wake = None

    def _wait(self) -> Piece | BaseException:
        while self._step is not None and not self._items:
            if not self._step() and not self._items:
                raise FourfoldError("engine: has nothing more to say to this stream, which was read to its end")
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items))
            return self._items.popleft()

    def _taken(self, item: Piece | BaseException) -> Piece:
        if isinstance(item, BaseException):
            self._ended = True
            raise item
        self._ended = item.finish_reason is not None
        return item

    def answer(self) -> Answer:
        """Wait for the whole answer. Raises what went wrong in the engine."""
        pieces = list(self)
        reason = pieces[-1].finish_reason or "stop"
        return Answer(
            text="".join(piece.text for piece in pieces),
            tokens=[token for piece in pieces for token in piece.tokens],
            finish_reason=reason,
            usage=self.usage,
            logprobs=[chosen for piece in pieces for chosen in piece.logprobs],
            prompt_logprobs=self.prompt_logprobs,
            drawings=[piece.drawing.codes for piece in pieces if isinstance(piece.drawing, DrawingFinished)],
        )
