"""Cutting queries against keys into pieces that leave out what nobody may see."""

from collections.abc import Iterator

from torch import Tensor

PART = 1 << 20  # scores of one sequence held at once: two megabytes in bf16, which stay in the cache
STEP = 64  # ranges begin and end at multiples of it: the library compiles a matrix product for every new shape


def visible_parts(mask: Tensor, cost_per_query: int) -> Iterator[tuple[int, slice, slice]]:
    """Sequence, a few of its queries, and the range of keys that some of them may read; mask [S, C, K] bool.

    Where documents are packed, or queries come before most keys, the ranges are a small part of all pairs. Every query is in one
    part; the range of queries that may read nothing is the first keys.
    """
    step = max(PART // cost_per_query // STEP * STEP, STEP)
    sequences, queries, keys = mask.shape
    for s in range(sequences):
        for start in range(0, queries, step):
            part = slice(start, min(start + step, queries))
            read = mask[s, part].any(0).nonzero()[:, 0]
            first, last = (int(read[0]), int(read[-1])) if len(read) else (0, 0)
            yield s, part, slice(first // STEP * STEP, min((last // STEP + 1) * STEP, keys))
