"""Between running sequences and the prefix store: pages are fetched before a prompt is read, and kept as they become full."""

from typing import TYPE_CHECKING

from fourfold.engine.pool import Seat
from fourfold.engine.sequence import contents, shown
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer

if TYPE_CHECKING:
    from fourfold.engine.store import PrefixStore

Page = list[bytes]


class Prefixes:
    """One store's pages for one model."""

    def __init__(self, model: Transformer, store: "PrefixStore") -> None:
        self.model, self.store = model, store

    def fetch(self, seat: Seat, namespace: str) -> tuple[Cache, str | None]:
        """A cache that has seen the longest stored beginning of a sequence, and why it is no longer.

        At least one token is left to be read, and no part of a picture or clip: patches depend on the whole (see `contents`).
        """
        whole = seat.whole()
        seat.contents = contents(whole)
        hit = self.store.fetch(namespace, seat.contents, len(whole) - 1)
        inside = {place for start, stop in shown(whole.modality) for place in range(start + 1, stop)}
        ends = [end for end in range(self.store.page, hit.tokens + 1, self.store.page) if end not in inside]
        cache, seat.kept = self._restored(hit.pages, ends)
        return cache, hit.reason if ends and seat.kept == ends[-1] else hit.reason or "forgotten"

    def _restored(self, pages: list[Page], ends: list[int]) -> tuple[Cache, int]:
        """A cache of the longest beginning that ends at one of `ends`, and that all layers can go on from."""
        cache, able, page = self.model.new_cache(1), [0], self.store.page
        for number, content in enumerate(pages[: ends[-1] // page if ends else 0], 1):
            cache.restore(0, content)
            if number * page in ends and cache.resumable(0):
                able.append(number * page)
        if cache.lengths[0] > able[-1]:
            cache = self.model.new_cache(1)
            for content in pages[: able[-1] // page]:
                cache.restore(0, content)
        return cache, able[-1]

    def keep(self, seat: Seat, namespace: str, cache: Cache, sequence: int, length: int) -> None:
        """Store the pages that the first `length` tokens fill. To be called after every forward: later, layers have forgotten."""
        page = self.store.page
        full = length // page * page
        if seat.contents is None or full <= seat.kept:
            return
        known = seat.contents[:full]
        start = max(seat.kept, self.store.missing(namespace, known))
        pages = [cache.snapshot(sequence, begin, begin + page) for begin in range(start, full, page)]
        self.store.keep(namespace, known, start, pages)
        seat.kept = full
