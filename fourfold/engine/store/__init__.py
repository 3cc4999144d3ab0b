"""The prefix store: states of prompts that were read before, page by page, in memory and then on disk.

    store = PrefixStore(model_digest(model), folder=home() / "prefixes")
    hit = store.fetch(namespace, contents(prompt), len(prompt) - 1)     # restore hit.pages into a cache, read the rest
    store.keep(namespace, contents(prompt), start, pages)               # what Cache.snapshot gave as each page was full

Whatever happens to the store, an answer is the same: what is not found, or found damaged, is computed.
"""

from collections import Counter, OrderedDict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Lock

from fourfold.engine.store.backlog import Backlog
from fourfold.engine.store.disk import Disk
from fourfold.engine.store.memory import Memory
from fourfold.engine.store.pages import CorruptPageError, Name, Page, names

__all__ = ["Hit", "Page", "PrefixStore", "StoreStats"]

LEAST_BACKLOG = 64 << 20  # bytes that may wait to be written, or as many as the memory's budget if that is more
REMEMBERED = 1 << 14  # keys of dropped pages, to say why they are missing


@dataclass(frozen=True)
class Hit:
    """The longest beginning that was there: its whole pages, in order. `reason` says why it is not longer, None if it is all.

    "too short": the prompt has no whole page; "cold": not even its first page was ever seen; "new text": what follows was never
    seen; "evicted": it was, but had to make room; "corrupt": its file was damaged.
    """

    tokens: int
    pages: list[Page]
    reason: str | None


@dataclass(frozen=True)
class StoreStats:
    """Counted since the store was opened, but for what is held now: pages and bytes."""

    queries: int
    queried_tokens: int  # that could have been hits
    hit_tokens: int
    misses: Mapping[str, int]  # by reason, see Hit
    memory_pages: int
    memory_bytes: int
    disk_pages: int
    disk_bytes: int
    unwritten: int  # pages that the disk did not take


class PrefixStore:
    """Pages of `page` tokens of one model; safe to use from any thread, and on one folder from several processes.

    `memory` and `disk` are budgets in bytes, `folder` None means no disk. Pages that wait to be written take up to `memory`
    more (at least 64 MiB). The folder may be shared by several models, and deleted at any time. Raises ConfigError when it
    cannot be written.
    """

    def __init__(
        self, model_digest: str, memory: int = 256 << 20, folder: Path | None = None, disk: int = 2 << 30, page: int = 64
    ) -> None:
        self.model_digest, self.page = model_digest, page
        self._memory, self._lock = Memory(memory), Lock()
        self._disk = None if folder is None else Disk(Path(folder), disk)
        self._backlog = Backlog(self._write, max(memory, LEAST_BACKLOG))
        self._dropped: OrderedDict[bytes, None] = OrderedDict()
        self._counts: Counter[str] = Counter()
        self._misses: Counter[str] = Counter()

    def fetch(self, namespace: str, contents: Sequence[Hashable], most: int) -> Hit:
        """The longest stored beginning of `contents` (engine/sequence.py), at most `most` tokens of it."""
        wanted = min(most, len(contents)) // self.page
        chain, pages, reason = list[Name](), list[Page](), None if wanted > 0 else "too short"
        for name in islice(names(self.model_digest, namespace, contents, self.page), max(wanted, 0)):
            page, reason = self._find(name, first=not chain)
            if page is None:
                break
            chain.append(name)
            pages.append(page)
        self._use(chain, pages)
        tokens = len(pages) * self.page
        with self._lock:
            self._counts.update(queries=1, queried_tokens=max(most, 0), hit_tokens=tokens)
            self._misses.update([reason] if reason else [])
        return Hit(tokens, pages, reason)

    def keep(self, namespace: str, contents: Sequence[Hashable], start: int, pages: Sequence[Page]) -> None:
        """Store the pages of `contents` from `start` on, a multiple of the page size."""
        stop = start // self.page + len(pages)
        if start < 0 or start % self.page or stop * self.page > len(contents):
            raise ValueError(
                f"{len(pages)} pages of {self.page} from token {start} on are no whole pages of {len(contents)} tokens"
            )
        chain = list(islice(names(self.model_digest, namespace, contents, self.page), stop))
        self._use(chain, pages)

    def missing(self, namespace: str, contents: Sequence[Hashable]) -> int:
        """Tokens up to which pages are there, so that `keep` need not be given them."""
        held = 0
        for name in names(self.model_digest, namespace, contents, self.page):
            if not self._has(name):
                break
            held += self.page
        return held

    def stats(self) -> StoreStats:
        with self._lock:
            counts, misses = self._counts, dict(self._misses)
            held = (len(self._memory), self._memory.bytes, *((self._disk.pages, self._disk.bytes) if self._disk else (0, 0)))
            return StoreStats(counts["queries"], counts["queried_tokens"], counts["hit_tokens"], misses, *held, counts["unwritten"])

    def close(self) -> None:
        """Wait until everything kept is on disk. Can be called at any time, and again."""
        self._backlog.flush()

    def _has(self, name: Name) -> bool:
        with self._lock:
            if self._memory.get(name.key) is not None:
                return True
        return self._backlog.get(name) is not None or (self._disk is not None and self._disk.has(name))

    def _find(self, name: Name, first: bool) -> tuple[Page | None, str | None]:
        """A page, or the reason why there is none. In this order, so that one on its way to the disk is not overlooked."""
        with self._lock:
            page, dropped = self._memory.get(name.key), name.key in self._dropped
        page = self._backlog.get(name) if page is None else page
        if page is None and self._disk is not None:
            try:
                page = self._disk.read(name)
            except CorruptPageError:
                return None, "corrupt"
        return page, None if page is not None else "evicted" if dropped else "cold" if first else "new text"

    def _use(self, chain: list[Name], pages: Sequence[Page]) -> None:
        """The last of a chain have these pages, and all of it was used now."""
        if not chain:
            return
        new = chain[len(chain) - len(pages) :]
        with self._lock:
            keys = [name.key for name in new]
            dropped = self._memory.use([name.key for name in chain], dict(zip(keys, pages, strict=True)))
            if self._disk is None:
                self._note(dropped)
        if self._disk is not None:
            todo = [pair for pair in zip(new, pages, strict=True) if not self._disk.has(pair[0])]
            refused = [name.key for name, page in todo if not self._backlog.put(name, page)]
            self._disk.use(chain[-1])
            with self._lock:
                self._note(refused, unwritten=len(refused))

    def _write(self, name: Name, page: Page) -> None:
        """What the backlog does with a page."""
        assert self._disk is not None  # without one nothing waits
        written, dropped = self._disk.write(name, page)
        with self._lock:
            self._note(dropped if written else [*dropped, name.key], unwritten=not written)

    def _note(self, dropped: Iterable[bytes], unwritten: int = 0) -> None:
        """Remember what is gone from the last tier for want of room; under the lock."""
        self._counts.update(unwritten=unwritten)
        for key in dropped:
            self._dropped[key] = None
        while len(self._dropped) > REMEMBERED:
            self._dropped.popitem(last=False)
