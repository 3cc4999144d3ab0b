"""An interpolated n-gram model with modified Kneser-Ney smoothing (Chen and Goodman 1998): what counting alone achieves.

    p_n(w | h) = max(c(h w) - D(c), 0) / C(h) + γ(h) p_{n-1}(w | h'),   p_0 = 1 / V

c is the count at the highest order, and below it the number of different tokens that stand before h w; an n-gram that begins at a
document's start has nothing before it and keeps its count. D takes three values an order, from the counts of counts.

An n-gram is numbered by its place in its order's sorted table, and its key is the number of its first n - 1 tokens and its last
token: two small integers in one, whatever n is. N-grams never cross documents.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fourfold.errors import DataError

FALLBACK = (0.5, 1.0, 1.5)  # discounts where the counts of counts give none


@dataclass(frozen=True)
class Order:
    """The n-grams of one order, and for each as a history what the next order has after it."""

    keys: np.ndarray  # [n-grams] int64, sorted
    discounted: np.ndarray  # [n-grams] fp32: c(h w) - D over C(h)
    kept: np.ndarray  # [histories of n - 1 tokens] fp32: γ, the mass left for the lower order; 1 where nothing follows


class KneserNey:
    """`order` tokens at most in an n-gram; documents begin with `bos`, which is context and is never predicted."""

    def __init__(self, stream: np.ndarray, vocab_size: int, bos: int, order: int = 5) -> None:
        """stream: documents end to end, each from its bos on."""
        if not len(stream) or stream[0] != bos:
            raise DataError("the stream does not begin with a document's <|bos|>; give whole documents")
        self.vocab, self.bos, self.orders = vocab_size, bos, []
        tokens, place = stream.astype(np.int64), places(stream, bos)
        ids, histories = tokens, 1  # of the n-gram that ends at each place, -1 where it would cross into another document
        tables = []
        for n in range(1, order + 1):
            keys, counts, first, ids = _number(tokens, ids, place, n, vocab_size)
            tables.append((keys, counts, place[first] == n - 1, ids))
            if n > 1:
                before = np.bincount(tables[-2][3][first], minlength=len(tables[-2][0]))
                tables[-2] = (tables[-2][0], np.where(tables[-2][2], tables[-2][1], before), None, None)
        for n, (keys, counts, _, _) in enumerate(tables, 1):
            if n == 1:
                counts = np.where(keys == bos, 0, counts)
            self.orders.append(_discount(keys, counts, vocab_size, histories))
            histories = len(keys)

    def nats(self, stream: np.ndarray) -> np.ndarray:
        """-log p of each token of a stream of documents given what stands before it in its document; 0 for each bos."""
        tokens, place = stream.astype(np.int64), places(stream, self.bos)
        odds = np.full(len(stream), 1 / self.vocab)
        history = np.zeros(len(stream), np.int64)  # number of the n-1 tokens before each place, -1 when never read
        for n, order in enumerate(self.orders, 1):
            known = (history >= 0) & (place >= n - 1)
            at = np.flatnonzero(known)
            key = history[at] * self.vocab + tokens[at]
            slot = np.minimum(np.searchsorted(order.keys, key), len(order.keys) - 1)
            found = order.keys[slot] == key
            odds[at] = odds[at] * order.kept[history[at]] + np.where(found, order.discounted[slot], 0.0)
            own = np.full(len(stream), -1, np.int64)
            own[at] = np.where(found, slot, -1)
            history = np.concatenate([[-1], own[:-1]])
        return np.where(tokens == self.bos, 0.0, -np.log(odds))

    def scorer(self, parts: list[Tensor]) -> list[Tensor]:
        """Whole documents as `perplexity.score` hands them over."""
        nats = torch.from_numpy(self.nats(torch.cat(parts).numpy()))
        return [own[1:] for own in nats.split([len(part) for part in parts])]


def places(stream: np.ndarray, bos: int) -> np.ndarray:
    """Each token's place in its document, from 0 at its bos."""
    index = np.arange(len(stream))
    return index - np.maximum.accumulate(np.where(stream == bos, index, 0))


def _number(tokens: np.ndarray, shorter: np.ndarray, place: np.ndarray, n: int, vocab: int) -> tuple[np.ndarray, ...]:
    """Keys and counts of all n-grams, a place where each ends, and the number of the one that ends at every place (-1: none)."""
    at = np.flatnonzero(place >= n - 1)
    keys = tokens[at] if n == 1 else shorter[at - 1] * vocab + tokens[at]
    unique, first, inverse, counts = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    ids = np.full(len(tokens), -1, np.int64)
    ids[at] = inverse
    return unique, counts, at[first], ids


def _discount(keys: np.ndarray, counts: np.ndarray, vocab: int, histories: int) -> Order:
    """Discounts D1, D2, D3+ of one order from its counts of counts, and the mass that they free for the lower one."""
    ones, twos, threes, fours = (max(int((counts == c).sum()), 1) for c in (1, 2, 3, 4))
    y = ones / (ones + 2 * twos)
    estimates = [1 - 2 * y * twos / ones, 2 - 3 * y * threes / twos, 3 - 4 * y * fours / threes]
    sound = all(0 < d < c for c, d in enumerate(estimates, 1))  # with few n-grams they may leave nothing for what is unseen
    taken = np.array([0.0, *(estimates if sound else FALLBACK)])[np.minimum(counts, 3)]
    history = keys // vocab
    total = np.bincount(history, counts, histories)
    freed = np.bincount(history, taken, histories)
    kept = np.divide(freed, total, out=np.ones(histories), where=total > 0)
    share = np.divide(counts - taken, total[history], out=np.zeros(len(keys)), where=total[history] > 0)
    return Order(keys, share.astype(np.float32), kept.astype(np.float32))
