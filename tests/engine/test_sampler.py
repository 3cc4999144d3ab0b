"""Choosing a token: the settings are checked, the mass that is kept is the mass that was asked for, seeds repeat."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some
from torch import Tensor

from fourfold.engine import sampler
from fourfold.engine.sampler import Sampling, draw_from, plain_shortlist, sample, shortlist
from fourfold.errors import ConfigError, FourfoldError

rows = some.lists(some.floats(-30, 30, width=32), min_size=1, max_size=40).map(torch.tensor)
temperatures = some.floats(0.05, 5)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", bad) for bad in (-0.1, math.inf, math.nan, "hot", True, None)],
        *[("top_p", bad) for bad in (0, -1, 1.01, math.nan)],
        *[("min_p", bad) for bad in (-0.01, 1.5)],
        *[("top_k", bad) for bad in (-1, 1.5, True)],
        *[("seed", bad) for bad in (-1, 2**63, 0.5)],
        *[("max_tokens", bad) for bad in (0, -1, 2.0)],
        *[("stop", bad) for bad in ([""], [3], ["a", ""], list("abcdefghijklmnopq"))],
        *[("stop_tokens", bad) for bad in ([-1], ["a"])],
        *[("frequency_penalty", bad) for bad in (-2.1, 3, math.nan)],
        *[("presence_penalty", bad) for bad in (-2.1, "much")],
        *[("repetition_penalty", bad) for bad in (0, -1, math.inf)],
        *[("logit_bias", bad) for bad in ({-1: 1.0}, {"7": 1.0})],
    ],
)
def test_a_bad_field_is_named_in_one_line(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field}: [^\n]+$"):
        Sampling(**{field: value})


def test_a_bad_bias_is_named_with_its_token() -> None:
    with pytest.raises(ConfigError, match=r"^logit_bias\[7\]: is 101"):
        Sampling(logit_bias={7: 101})


def test_one_stop_string_need_not_be_a_list() -> None:
    assert Sampling(stop="end").stop == ("end",)
    assert Sampling(stop=None).stop == () == Sampling().stop


@given(rows)
def test_greedy_takes_the_first_of_the_best(logits: Tensor) -> None:
    assert sample(logits, Sampling(temperature=0)) == logits.tolist().index(max(logits.tolist()))


@given(rows, temperatures, some.floats(0.01, 0.999))
def test_top_p_keeps_the_smallest_set_that_holds_the_mass(logits: Tensor, temperature: float, top_p: float) -> None:
    ids, mass = shortlist(logits, Sampling(temperature, top_p=top_p))
    every = (logits.double() / temperature).softmax(0)
    assert torch.allclose(mass, every[ids])
    assert mass.sum() >= top_p - 1e-9  # holds the mass
    assert mass[:-1].sum() < top_p + 1e-9  # and would not without the last
    left_out = [i for i in range(len(every)) if i not in ids.tolist()]
    assert not left_out or every[left_out].max() <= mass.min() + 1e-12


@given(rows, some.integers(1, 50), some.floats(0, 1))
def test_top_k_and_min_p_keep_what_they_say(logits: Tensor, top_k: int, min_p: float) -> None:
    ids, mass = shortlist(logits, Sampling(1.0, top_k=top_k, min_p=min_p))
    assert 1 <= len(ids) <= top_k and len(set(ids.tolist())) == len(ids)
    assert logits[ids[0]] == logits.max()
    assert (mass >= min_p * mass[0]).all()


# Few values, so that many are equal, also where the candidates end; some ruled out.
crowded = some.lists(some.sampled_from([-math.inf, -3.0, -1.0, 0.0, 0.5, 2.0, 4.0]), min_size=1, max_size=120).map(torch.tensor)
settings = some.builds(
    Sampling,
    temperature=some.sampled_from([0.3, 1.0, 2.5]),
    top_p=some.sampled_from([1.0, 0.999, 0.7, 0.1]),
    top_k=some.sampled_from([0, 1, 5, 200]),
    min_p=some.sampled_from([0.0, 0.05, 0.4, 1.0]),
    seed=some.integers(0, 99),
)


@given(some.one_of(rows, crowded), settings)
def test_sorting_only_candidates_draws_what_sorting_all_does(logits: Tensor, sampling: Sampling) -> None:
    if not logits.max().isfinite():
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "CANDIDATES", 2)
        ids, mass = shortlist(logits, sampling)
        drawn = [sample(logits, sampling, g) for g in [sampling.generator()] for _ in range(5)]
    expected_ids, expected_mass = plain_shortlist(logits, sampling)
    assert ids.tolist() == expected_ids.tolist() and torch.allclose(mass, expected_mass, rtol=1e-12, atol=0)
    source = sampling.generator()
    draws = [torch.rand((), generator=source, dtype=torch.float64) for _ in range(5)]
    assert drawn == [draw_from(expected_ids, expected_mass, draw) for draw in draws]


def test_a_large_vocabulary_is_not_sorted_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    sorted_sizes, sort = [], Tensor.sort
    monkeypatch.setattr(Tensor, "sort", lambda self, *a, **k: sorted_sizes.append(len(self)) or sort(self, *a, **k))
    logits = torch.randn(20_000) * 8
    for sampling in (Sampling(0.0), Sampling(1.0), Sampling(1.0, top_k=20), Sampling(1.0, top_p=0.9), Sampling(1.0, min_p=0.1)):
        sample(logits, sampling, torch.Generator().manual_seed(1))
    assert len(sorted_sizes) >= 4 and max(sorted_sizes) < 5000


@given(rows, some.integers(0, 2**63 - 1), temperatures)
def test_the_same_seed_draws_the_same_tokens(logits: Tensor, seed: int, temperature: float) -> None:
    sampling = Sampling(temperature, top_p=0.9, seed=seed)
    one, other = sampling.generator(), sampling.generator()
    torch.rand(7)  # draws elsewhere do not matter
    assert [sample(logits, sampling, one) for _ in range(5)] == [sample(logits, sampling, other) for _ in range(5)]


def test_no_seed_draws_differently_each_time() -> None:
    logits, sampling = torch.zeros(1000), Sampling(1.0)
    drawn = [[sample(logits, sampling, generator) for _ in range(8)] for generator in (sampling.generator(), sampling.generator())]
    assert drawn[0] != drawn[1]


def test_draws_follow_the_distribution() -> None:
    share = torch.tensor([0.5, 0.3, 0.15, 0.05])
    sampling = Sampling(1.0, seed=3)
    generator = sampling.generator()
    counts = torch.bincount(torch.tensor([sample(share.log(), sampling, generator) for _ in range(4000)]), minlength=4)
    chi_squared = ((counts - 4000 * share) ** 2 / (4000 * share)).sum()
    assert chi_squared < 16.3  # 3 degrees of freedom: exceeded once in a thousand seeds


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = torch.tensor([-math.inf, 0.0, -math.inf, 0.0])
    generator = Sampling(seed=0).generator()
    assert {sample(logits, Sampling(5.0), generator) for _ in range(50)} == {1, 3}


@pytest.mark.parametrize("temperature", [1e-300, 1e300])
def test_extreme_temperatures_are_greedy_or_even(temperature: float) -> None:
    generator = Sampling(seed=0).generator()
    drawn = {sample(torch.tensor([1.0, 2.0, 1.0]), Sampling(temperature), generator) for _ in range(60)}
    assert drawn == ({1} if temperature < 1 else {0, 1, 2})


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_an_error(bad: float) -> None:
    with pytest.raises(FourfoldError, match="logits: not finite"):
        sample(torch.tensor([0.0, bad]), Sampling())
