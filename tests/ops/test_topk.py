"""The tie rule: fast = definition under many ties, the newer position and the lower expert win, padding changes nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourfold.ops.topk import first_topk, newest_topk, newest_topk_definition
from tests.ops.conftest import Calls

NOTHING = float("-inf")
few_values = st.sampled_from([NOTHING, -1.0, -1e-40, -0.0, 0.0, 1e-40, 1.0, 2.0, float("inf")])
rows = st.integers(1, 24).flatmap(lambda n: st.lists(st.lists(few_values, min_size=n, max_size=n), min_size=1, max_size=4))


def by_hand(row: list[float], k: int) -> list[int]:
    """Ascending positions: larger scores first, the newer among equals."""
    return sorted(sorted(range(len(row)), key=lambda i: (-row[i], -i))[:k])


@given(rows, st.integers(1, 30))
def test_newest_topk_is_its_definition(kernels: Calls, scores: list[list[float]], k: int) -> None:
    expected = [by_hand(row, k) for row in scores]
    assert newest_topk_definition(torch.tensor(scores), k).tolist() == expected
    assert newest_topk(torch.tensor(scores), k).tolist() == expected
    kernels.expect(*({"newest_topk"} if k < len(scores[0]) else set()))


@given(rows, st.integers(1, 30))
def test_first_topk_takes_the_best_first_and_the_lower_index_among_equals(scores: list[list[float]], k: int) -> None:
    expected = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores]
    assert first_topk(torch.tensor(scores), k).tolist() == expected


@given(rows, st.integers(1, 30), st.integers(0, 9))
def test_padding_behind_changes_no_choice(kernels: Calls, scores: list[list[float]], k: int, padding: int) -> None:
    plain, padded = torch.tensor(scores), torch.nn.functional.pad(torch.tensor(scores), (0, padding), value=NOTHING)
    assert [valid(row, newest_topk(row, k)) for row in padded] == [valid(row, newest_topk(row, k)) for row in plain]
    assert [valid(row, first_topk(row, k)) for row in padded] == [valid(row, first_topk(row, k)) for row in plain]


def valid(row: Tensor, indices: Tensor) -> list[int]:
    return [i for i in indices.tolist() if row[i] > NOTHING]


@given(rows, st.integers(1, 30), st.randoms())
def test_neighbours_in_a_batch_change_no_choice(kernels: Calls, scores: list[list[float]], k: int, random) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)
    together, apart = torch.tensor(scores)[order], [newest_topk(torch.tensor(scores[i]), k).tolist() for i in order]
    assert newest_topk(together, k).tolist() == apart


@pytest.mark.parametrize("k", [1, 7, 63, 64, 65, 1000])
def test_many_dimensions_and_large_rows(k: int, kernels: Calls) -> None:
    scores = torch.randint(-3, 3, (2, 5, 64)).float()
    scores[0, 0] = 0.0
    assert torch.equal(newest_topk(scores, k), newest_topk_definition(scores, k))
    assert newest_topk(scores, k).shape == (2, 5, min(k, 64))
    assert newest_topk(scores, k)[0, 0].tolist() == list(range(max(64 - k, 0), 64))


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 500, 999])
def test_large_rows_of_all_kinds(k: int, kernels: Calls) -> None:
    """Random numbers of every size, with ties, both zeros and infinities among them."""
    scores = torch.randn(7, 1000) * 10.0 ** torch.randint(-44, 38, (7, 1000))
    scores[:, ::7] = 0.0
    scores[:, 3::14] = -0.0
    scores[2, :600], scores[3, 400:], scores[4] = NOTHING, torch.inf, NOTHING
    assert torch.equal(newest_topk(scores, k), newest_topk_definition(scores, k))


@pytest.mark.parametrize("k", [1, 3, 8, 19])
def test_what_is_not_a_number(k: int, kernels: Calls) -> None:
    """NaN of either sign counts as the largest, as in PyTorch; whatever is chosen is a position."""
    scores = torch.randn(5, 20)
    scores[0, [2, 17]], scores[1], scores[2, 4], scores[2, 9] = torch.nan, torch.nan, -torch.nan, torch.inf
    scores[3, :10] = -(torch.tensor(torch.inf) - torch.inf)
    chosen = newest_topk(scores, k)
    assert chosen.shape == (5, k)
    assert ((chosen >= 0) & (chosen < 20)).all()
    assert torch.equal(chosen[4], newest_topk_definition(scores, k)[4])
    if kernels.available:
        assert torch.equal(chosen, newest_topk_definition(scores, k))


def test_views_and_other_formats(kernels: Calls) -> None:
    scores = torch.randint(-3, 3, (6, 5, 40)).float()
    for view in (scores.transpose(0, 2), scores[:, 1:4, ::3], scores[:1].expand(4, -1, -1)):
        assert torch.equal(newest_topk(view, 3), newest_topk_definition(view, 3))
    kernels.expect("newest_topk")
    for dtype in (torch.bfloat16, torch.float64):
        assert torch.equal(newest_topk(scores.to(dtype), 7), newest_topk_definition(scores, 7))
    assert not kernels
