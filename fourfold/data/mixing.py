"""Rows drawn from several sources in fixed shares, in an order that is a pure function of the shares.

Which source the i-th row comes from follows Tijdeman's rule for the chairman assignment problem (1980): over every stretch from the
start, each source has had its share of the rows to less than one row. Every source then gives its own rows one after another.
"""

from typing import Protocol

import numpy as np
from torch import Tensor

from fourfold.data.rows import RowBatch, joined


class Rows(Protocol):
    """An endless run of rows of one length, each a pure function of its place."""

    def row_at(self, place: int) -> int:
        """The number of the row at a place of the run."""

    def take(self, rows: list[int]) -> tuple[Tensor, Tensor] | RowBatch:
        """Rows by number: where all is text (tokens [B, T+1] int64, documents [B, T+1] int64) will do."""


class MixedRows:
    """Batches of several sources. `shares` are in proportion; a source starts at its place in `first` (0 where not named)."""

    def __init__(self, sources: dict[str, Rows], shares: dict[str, float], first: dict[str, int] | None = None):
        self.sources, self.first = sources, first or {}
        self.names = list(shares)
        self._shares = [share / sum(shares.values()) for share in shares.values()]
        self._counts = [0] * len(self.names)
        self._chosen: list[tuple[int, int]] = []  # per row: the source's index, and how many rows it gave before

    def batch(self, step: int, batch_size: int) -> RowBatch:
        """Rows `step * batch_size` and on; numbers of documents differ between rows."""
        rows: list[RowBatch] = []
        for place in range(step * batch_size, (step + 1) * batch_size):
            name, nth = self.source_of(place)
            source = self.sources[name]
            row = source.take([source.row_at(self.first.get(name, 0) + nth)])
            rows.append(row if isinstance(row, RowBatch) else RowBatch(*row))
        return joined(rows)

    def source_of(self, place: int) -> tuple[str, int]:
        """The source of the row at a place, and how many rows that source gave before it."""
        while len(self._chosen) <= place:
            self._choose()
        index, nth = self._chosen[place]
        return self.names[index], nth

    def counts(self, rows: int) -> dict[str, int]:
        """How many of the first `rows` rows each source gives."""
        if rows:
            self.source_of(rows - 1)
        chosen = np.bincount([index for index, _ in self._chosen[:rows]], minlength=len(self.names))
        return dict(zip(self.names, chosen.tolist(), strict=True))

    def _choose(self) -> None:
        """Of the sources that are owed enough of a row, the one that must have it soonest."""
        owed = [share * len(self._chosen) - count for share, count in zip(self._shares, self._counts, strict=True)]
        slack = 1 / max(2 * len(self.names) - 2, 1)
        # a rounding error must not leave the last source of many with nothing to choose from
        able = [i for i, share in enumerate(self._shares) if owed[i] + share >= slack - 1e-9] or range(len(owed))
        index = min(able, key=lambda i: (1 - slack - owed[i]) / self._shares[i])
        self._chosen.append((index, self._counts[index]))
        self._counts[index] += 1
