"""The n-gram model against a plain one written from the formulas, and as a distribution."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fourfold.errors import DataError
from fourfold.evals.ngram import KneserNey, places

BOS, VOCAB, ORDER = 0, 7, 4


def documents(seed: int, count: int) -> list[list[int]]:
    """Texts with habits: after most tokens another one is likely."""
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        text = [BOS]
        for _ in range(int(generator.integers(1, 12))):
            text.append(int((text[-1] * 2 + 1) % 6 + 1 if generator.random() < 0.6 else generator.integers(1, VOCAB)))
        found.append(text)
    return found


def stream(texts: list[list[int]]) -> np.ndarray:
    return np.array([token for text in texts for token in text], np.uint16)


class Plain:
    """The definition, with dictionaries."""

    def __init__(self, texts: list[list[int]]) -> None:
        grams = [Counter(self.grams(texts, n)) for n in range(1, ORDER + 1)]
        self.counts: list[dict] = []
        for n in range(1, ORDER + 1):
            before = Counter(gram[1:] for gram in grams[n]) if n < ORDER else None
            own = {g: c if before is None or g[0] == BOS else before[g] for g, c in grams[n - 1].items()}
            self.counts.append({g: (0 if g == (BOS,) else c) for g, c in own.items()})
        self.discounts = [self.discount(Counter(own.values())) for own in self.counts]
        self.after: list[dict] = [defaultdict(list) for _ in self.counts]
        for own, after in zip(self.counts, self.after, strict=True):
            for gram, count in own.items():
                after[gram[:-1]].append(count)

    @staticmethod
    def grams(texts: list[list[int]], n: int) -> Iterator[tuple[int, ...]]:
        return (tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))

    @staticmethod
    def discount(of: Counter) -> list[float]:
        n = [max(of[c], 1) for c in range(5)]
        y = n[1] / (n[1] + 2 * n[2])
        estimates = [c - (c + 1) * y * n[c + 1] / n[c] for c in (1, 2, 3)]
        return [0.0, *(estimates if all(0 < d < c for c, d in zip((1, 2, 3), estimates, strict=True)) else (0.5, 1.0, 1.5))]

    def odds(self, history: tuple[int, ...], token: int, n: int | None = None) -> float:
        n = min(ORDER, len(history) + 1) if n is None else n
        if n == 0:
            return 1 / VOCAB
        context = history[len(history) - n + 1 :]
        total = sum(self.after[n - 1][context])
        lower = self.odds(history, token, n - 1)
        if not total:
            return lower
        taken = [self.discounts[n - 1][min(c, 3)] for c in self.after[n - 1][context]]
        count = self.counts[n - 1].get((*context, token), 0)
        left = count - self.discounts[n - 1][min(count, 3)]
        return left / total + sum(taken) / total * lower


def test_it_is_the_definition() -> None:
    train, held_out = documents(0, 60), documents(1, 15)
    plain, fast = Plain(train), KneserNey(stream(train), VOCAB, BOS, ORDER)
    nats = fast.nats(stream(held_out))
    expected = [0.0 if i == 0 else -math.log(plain.odds(tuple(text[:i]), text[i])) for text in held_out for i in range(len(text))]
    assert nats == pytest.approx(expected, rel=1e-5)


def test_what_may_follow_sums_to_one() -> None:
    model = KneserNey(stream(documents(0, 60)), VOCAB, BOS, ORDER)
    for text in documents(2, 10):
        odds = [math.exp(-model.nats(np.array([*text, token]))[-1]) for token in range(1, VOCAB)]
        nothing = 1 - sum(odds)  # bos, which comes only from the share that every token has
        assert 0 <= nothing < 0.1


def test_documents_do_not_see_each_other() -> None:
    train, held_out = documents(0, 40), documents(1, 6)
    model = KneserNey(stream(train), VOCAB, BOS, ORDER)
    alone = np.concatenate([model.nats(stream([text])) for text in held_out])
    assert model.nats(stream(held_out)) == pytest.approx(alone)
    other_order = KneserNey(stream(train[::-1]), VOCAB, BOS, ORDER)
    assert other_order.nats(stream(held_out)) == pytest.approx(alone)
    parts = [torch.tensor(text) for text in held_out]
    assert torch.cat(model.scorer(parts)).tolist() == pytest.approx(
        [x for text in held_out for x in model.nats(stream([text]))[1:]]
    )


def test_longer_histories_help_on_text_with_habits() -> None:
    train, held_out = stream(documents(0, 400)), stream(documents(1, 80))
    losses = [KneserNey(train, VOCAB, BOS, order).nats(held_out).sum() for order in (1, 2)]
    assert losses[1] < 0.8 * losses[0] < 0.8 * np.log(VOCAB) * (len(held_out) - 80) * 1.01


def test_places_and_what_is_no_stream() -> None:
    assert places(np.array([0, 5, 5, 0, 0, 2]), 0).tolist() == [0, 1, 2, 0, 0, 1]
    with pytest.raises(DataError, match="bos"):
        KneserNey(np.array([3, 0]), VOCAB, BOS)
