"""The comparator itself: it must accept what the definition of close accepts, and nothing more."""

import pytest
import torch

from tests.compare import assert_close, assert_same_greedy, assert_same_selection, assert_same_tokens


def test_bound_is_relative_to_the_largest_number_and_at_least_one() -> None:
    large, small = torch.tensor([1000.0, 1.0]), torch.tensor([0.01, 0.0])
    assert assert_close(large + torch.tensor([0.0, 0.09]), large).worst == pytest.approx(9e-5, rel=1e-2)
    assert_close(small + 0.9e-4, small)
    with pytest.raises(AssertionError, match=r"1 of 2 are off.*at \(1,\)"):
        assert_close(large + torch.tensor([0.0, 0.11]), large)
    with pytest.raises(AssertionError, match="logits: 2 of 2"):
        assert_close(small + 1.1e-4, small, "logits")


def test_bound_follows_the_less_precise_format() -> None:
    exact = torch.full((3,), 5.0)
    assert_close((exact + 0.05).bfloat16(), exact)
    with pytest.raises(AssertionError):
        assert_close((exact + 0.05).bfloat16(), exact, dtype=torch.float32)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_what_is_not_finite_is_close_only_to_the_same_infinity(bad: float) -> None:
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([bad, 1.0]), torch.tensor([1.0, 1.0]))
    with pytest.raises(AssertionError):
        assert_close(torch.tensor([1.0, 1.0]), torch.tensor([bad, 1.0]))
    same = torch.tensor([bad, 1.0])
    if same.isnan().any():
        with pytest.raises(AssertionError):
            assert_close(same, same)
    else:
        assert assert_close(same, same).worst == 0


def test_shapes_must_agree() -> None:
    with pytest.raises(AssertionError, match=r"\(2, 1\) and \(2,\)"):
        assert_close(torch.zeros(2, 1), torch.zeros(2))


def test_greedy_tokens_may_differ_only_at_a_near_tie() -> None:
    expected = torch.tensor([[100.0, 99.9995, 0.0]])
    near = torch.tensor([[99.9995, 100.0, 0.0]])
    assert assert_same_greedy(near, expected).differing_greedy == 1
    assert assert_same_greedy(expected, expected).differing_greedy == 0
    clear = torch.tensor([[100.0, 99.995, 0.0]])
    with pytest.raises(AssertionError, match="the first at row 0"):
        assert_same_greedy(clear[:, [1, 0, 2]], clear)


def test_token_runs_may_part_after_a_near_tie_only() -> None:
    logits = torch.tensor([[1.0, 0.0], [1.0, 0.9995], [1.0, 0.0]])
    assert_same_tokens([0, 1, 1], [0, 0, 0], logits)
    with pytest.raises(AssertionError, match="token 0 is 1 instead of 0"):
        assert_same_tokens([1, 0, 0], [0, 0, 0], logits)
    with pytest.raises(AssertionError, match="2 tokens instead of 3"):
        assert_same_tokens([0, 0], [0, 0, 0], logits)


def test_selections_are_sets() -> None:
    ids = torch.tensor([[3, 1, -1], [0, 2, 5]])
    assert assert_same_selection(ids.flip(-1), ids).differing_selections == 0
    with pytest.raises(AssertionError, match="1 of 2 selections differ, the first in row 1"):
        assert_same_selection(torch.tensor([[1, 3, -7], [0, 2, 4]]), ids)
    mask = torch.tensor([[True, False], [False, True]])
    assert_same_selection(mask, mask.clone())
    with pytest.raises(AssertionError, match="1 of 2"):
        assert_same_selection(mask, torch.tensor([[True, False], [True, False]]))
