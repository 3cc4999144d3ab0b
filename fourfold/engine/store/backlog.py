"""What is on its way to the disk: a bounded queue, and a thread that lives as long as there is something in it."""

from collections import OrderedDict
from collections.abc import Callable
from threading import Lock, Thread

from fourfold.engine.store.pages import Name, Page, size


class Backlog:
    """Pages wait here in the order in which they came, and can be read meanwhile. At most `most` bytes: more is refused, so that a
    slow disk costs hits later on, never time now."""

    def __init__(self, write: Callable[[Name, Page], None], most: int) -> None:
        self._write, self.most, self.bytes = write, most, 0
        self._waiting: OrderedDict[Name, Page] = OrderedDict()
        self._lock = Lock()
        self._thread: Thread | None = None

    def get(self, name: Name) -> Page | None:
        with self._lock:
            return self._waiting.get(name)

    def put(self, name: Name, page: Page) -> bool:
        """Whether there was room for it."""
        with self._lock:
            if name in self._waiting:
                return True
            if self.bytes + size(page) > self.most:
                return False
            self._waiting[name] = page
            self.bytes += size(page)
            if self._thread is None:
                self._thread = Thread(target=self._work, name="prefix store", daemon=True)
                self._thread.start()
            return True

    def flush(self) -> None:
        """Wait until all that is waiting now has been written."""
        with self._lock:
            thread = self._thread
        if thread is not None:
            thread.join()

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                name, page = next(iter(self._waiting.items()))
            self._write(name, page)
            with self._lock:
                del self._waiting[name]
                self.bytes -= size(page)
