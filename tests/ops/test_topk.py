"""The tie rule: fast = definition under many ties, the newer position and the lower expert win, padding changes nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourfold.ops.topk import first_topk, newest_topk, newest_topk_definition

NOTHING = float("-inf")
few_values = st.sampled_from([NOTHING, -1.0, -0.0, 0.0, 1.0, 2.0])
rows = st.integers(1, 24).flatmap(lambda n: st.lists(st.lists(few_values, min_size=n, max_size=n), min_size=1, max_size=4))


def by_hand(row: list[float], k: int) -> list[int]:
    """Ascending positions: larger scores first, the newer among equals."""
    return sorted(sorted(range(len(row)), key=lambda i: (-row[i], -i))[:k])


@given(rows, st.integers(1, 30))
def test_newest_topk_is_its_definition(scores: list[list[float]], k: int) -> None:
    expected = [by_hand(row, k) for row in scores]
    assert newest_topk_definition(torch.tensor(scores), k).tolist() == expected
    assert newest_topk(torch.tensor(scores), k).tolist() == expected


@given(rows, st.integers(1, 30))
def test_first_topk_takes_the_best_first_and_the_lower_index_among_equals(scores: list[list[float]], k: int) -> None:
    expected = [sorted(range(len(row)), key=lambda i: (-row[i], i))[:k] for row in scores]
    assert first_topk(torch.tensor(scores), k).tolist() == expected


@given(rows, st.integers(1, 30), st.integers(0, 9))
def test_padding_behind_changes_no_choice(scores: list[list[float]], k: int, padding: int) -> None:
    plain, padded = torch.tensor(scores), torch.nn.functional.pad(torch.tensor(scores), (0, padding), value=NOTHING)
    assert [valid(row, newest_topk(row, k)) for row in padded] == [valid(row, newest_topk(row, k)) for row in plain]
    assert [valid(row, first_topk(row, k)) for row in padded] == [valid(row, first_topk(row, k)) for row in plain]


def valid(row: Tensor, indices: Tensor) -> list[int]:
    return [i for i in indices.tolist() if row[i] > NOTHING]


@given(rows, st.integers(1, 30), st.randoms())
def test_neighbours_in_a_batch_change_no_choice(scores: list[list[float]], k: int, random) -> None:
    order = list(range(len(scores)))
    random.shuffle(order)
    together, apart = torch.tensor(scores)[order], [newest_topk(torch.tensor(scores[i]), k).tolist() for i in order]
    assert newest_topk(together, k).tolist() == apart


@pytest.mark.parametrize("k", [1, 7, 63, 64, 65, 1000])
def test_many_dimensions_and_large_rows(k: int) -> None:
    scores = torch.randint(-3, 3, (2, 5, 64)).float()
    scores[0, 0] = 0.0
    assert torch.equal(newest_topk(scores, k), newest_topk_definition(scores, k))
    assert newest_topk(scores, k).shape == (2, 5, min(k, 64))
    assert newest_topk(scores, k)[0, 0].tolist() == list(range(max(64 - k, 0), 64))
