"""Intervals against published values and by their defining properties; samples that nest."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fourfold.evals.statistics import bootstrap, share, subset, wilson


@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (1, 29, 0.0061, 0.1718)],
)  # the last two: Newcombe 1998, table I, method 3
def test_wilson_is_the_published_interval(right: int, total: int, low: float, high: float) -> None:
    assert wilson(right, total) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_mirrors(pair: tuple[int, int]) -> None:
    right, total = pair
    low, high = wilson(right, total)
    assert 0 <= low <= right / total + 1e-12 and right / total - 1e-12 <= high <= 1
    assert wilson(total - right, total) == pytest.approx((1 - high, 1 - low))


def test_nothing_tried_says_nothing() -> None:
    assert share(0, 0) == {"right": 0, "total": 0, "share": None, "interval": [0.0, 1.0]}
    assert share(3, 4)["share"] == 0.75


def test_bootstrap_is_about_the_ratio_of_sums() -> None:
    assert bootstrap([2.0, 4.0, 6.0], [1, 2, 3]) == pytest.approx([2.0, 2.0])
    assert bootstrap([1.0], [1]) is None
    low, high = bootstrap([0.0] * 99 + [1000.0], [1.0] * 99 + [1000.0])  # one document that holds most of the bytes
    assert low == 0.0 and 0.9 < high < 1


def test_bootstrap_covers_the_truth_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        sizes = generator.integers(50, 150, 60)
        low, high = bootstrap(list(sizes * (1.5 + generator.standard_normal(60) * 0.3)), list(sizes))
        hits += low <= 1.5 <= high
    assert 178 <= hits <= 199  # of 200; 95 % of them, less a little for 60 units


def test_samples_keep_the_order_and_nest() -> None:
    items = [f"document {i}" for i in range(50)]
    few, more = subset(items, 7, str), subset(items, 20, str)
    assert len(few) == 7 and set(few) < set(more) and more == sorted(more, key=items.index)
    assert subset(list(reversed(items)), 7, str) == list(reversed(few))
    assert subset(items, None, str) == subset(items, 99, str) == items
