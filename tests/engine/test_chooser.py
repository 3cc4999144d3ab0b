"""Penalties and bias against their plain definition, log-probabilities against log_softmax."""

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from fourfold.engine.chooser import Chooser
from fourfold.engine.constraint import Constraint
from fourfold.engine.logprobs import chosen, prompt_chosen
from fourfold.engine.penalties import Penalties
from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError
from fourfold.text.tokenizer import Tokenizer

SIZE = 12
ids = some.integers(0, SIZE - 1)
penalised = some.builds(
    Sampling,
    temperature=some.just(0.0),
    frequency_penalty=some.sampled_from([0.0, 0.5, -1.0]),
    presence_penalty=some.sampled_from([0.0, 0.7, -2.0]),
    repetition_penalty=some.sampled_from([1.0, 1.3, 0.8]),
    logit_bias=some.dictionaries(ids, some.floats(-100, 100), max_size=3),
)


def plain(logits: torch.Tensor, sampling: Sampling, prompt: list[int], said: list[int]) -> torch.Tensor:
    """Penalties from the whole text, every time anew."""
    counts, wanted = Counter(said), logits.double().tolist()
    for token in {*prompt, *said}:
        wanted[token] *= 1 / sampling.repetition_penalty if wanted[token] > 0 else sampling.repetition_penalty
    for token, count in counts.items():
        wanted[token] -= count * sampling.frequency_penalty + sampling.presence_penalty
    for token, bias in sampling.logit_bias.items():
        wanted[token] += bias
    return torch.tensor(wanted, dtype=torch.float64)


@given(penalised, some.lists(ids, max_size=6), some.lists(ids, max_size=20))
def test_penalties_kept_as_counts_are_those_of_the_whole_text(sampling: Sampling, prompt: list[int], said: list[int]) -> None:
    penalties = Penalties(sampling, SIZE, prompt)
    for place in range(len(said) + 1):
        logits = torch.linspace(-4, 4, SIZE).roll(place)
        before = logits.clone()
        assert torch.allclose(penalties.apply(logits).double(), plain(logits, sampling, prompt, said[:place]), atol=1e-4)
        assert torch.equal(logits, before)
        if place < len(said):
            penalties.take(said[place])


def test_no_penalty_leaves_the_logits_alone() -> None:
    penalties, logits = Penalties(Sampling(), SIZE, [1, 2]), torch.randn(SIZE)
    penalties.take(3)
    assert penalties.idle and penalties.apply(logits) is logits


def test_a_bias_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(ConfigError, match="^logit_bias: 12 is no token; ids end at 11$"):
        Chooser(Sampling(logit_bias={12: 1.0}), SIZE)


def test_bias_forces_and_forbids() -> None:
    logits = torch.linspace(0, 5, SIZE)
    assert Chooser(Sampling(0.0, logit_bias={3: 100}), SIZE).choose(logits) == 3
    assert Chooser(Sampling(0.0, logit_bias={SIZE - 1: -100}), SIZE).choose(logits) == SIZE - 2


def test_penalties_come_before_the_constraint_and_the_draw(tokenizer: Tokenizer) -> None:
    sampling = Sampling(0.0, frequency_penalty=1.0, logit_bias={tokenizer.special("end"): 50})
    chooser = Chooser(sampling, tokenizer.vocab_size, Constraint.regex(tokenizer, "[xyz]{4}"))
    logits, said = torch.zeros(tokenizer.vocab_size), list[str]()
    for sign, logit in zip("xyz", (3.0, 2.5, 0.0), strict=True):
        logits[tokenizer.encode(sign)] = logit
    for _ in range(4):
        said.append(tokenizer.decode([token := chooser.choose(logits)]))
        chooser.take(token)
    assert "".join(said) == "xyxy"  # 3, 2.5, 2, 1.5
    assert chooser.choose(logits) in tokenizer.ends


@given(some.lists(some.sampled_from([-2.0, 0.0, 0.5, 3.0]), min_size=1, max_size=30), some.integers(0, 40), some.data())
def test_logprobs_are_those_of_the_whole_distribution(row: list[float], top: int, data: some.DataObject) -> None:
    logits = torch.tensor(row)
    token = data.draw(some.integers(0, len(row) - 1))
    found, every = chosen(logits, token, top), logits.double().log_softmax(0).tolist()
    assert found.token == token and found.logprob == pytest.approx(every[token], abs=1e-5)
    expected = sorted(range(len(row)), key=lambda i: (-row[i], i))[:top]
    assert [id for id, _ in found.top] == expected
    assert [value for _, value in found.top] == pytest.approx([every[id] for id in expected], abs=1e-5)


def test_logprobs_of_a_prompt_are_those_of_each_place() -> None:
    logits, tokens = torch.randn(5, 40), torch.tensor([3, 1, 39, 0, 3])
    assert prompt_chosen(logits, tokens, 2) == [chosen(row, int(token), 2) for row, token in zip(logits, tokens, strict=True)]
    assert prompt_chosen(logits[:0], tokens[:0]) == []
