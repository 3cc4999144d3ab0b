"""Pages in memory, up to a number of bytes; the one used longest ago goes first, and never before a page that follows it.

A page is used together with all before it, the last one first. So a page is always newer than those that follow it, the oldest of
all is a leaf of the tree, and plain LRU drops leaves first without knowing the tree. Pages are immutable and counted by reference:
one that is dropped while somebody reads it lives on for that reader.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import takewhile

from fourfold.engine.store.pages import Page, size


class Memory:
    """Not locked: PrefixStore does that."""

    def __init__(self, budget: int) -> None:
        self.budget, self.bytes = budget, 0
        self._pages: OrderedDict[bytes, Page] = OrderedDict()  # used longest ago first

    def __len__(self) -> int:
        return len(self._pages)

    def get(self, key: bytes) -> Page | None:
        return self._pages.get(key)

    def use(self, chain: Sequence[bytes], new: Mapping[bytes, Page]) -> list[bytes]:
        """Note that the pages of a chain are used, those of `new` being added; returns what had to be dropped.

        After a page that is not here nothing is added: it could not be found.
        """
        held = list(takewhile(lambda key: key in self._pages or key in new, chain))
        for key in reversed(held):
            if key not in self._pages:
                self._pages[key] = new[key]
                self.bytes += size(new[key])
            self._pages.move_to_end(key)
        return self._dropped()

    def _dropped(self) -> list[bytes]:
        keys = []
        while self.bytes > self.budget:
            key, page = self._pages.popitem(last=False)
            self.bytes -= size(page)
            keys.append(key)
        return keys
