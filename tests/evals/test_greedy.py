"""Batches of replies, with and without a shared context, against one at a time through the engine."""

import pytest
import torch

from fourfold.engine.batches import prefill, replies
from fourfold.engine.generate import end_tokens, generate
from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError
from fourfold.model.transformer import Transformer

PROMPTS = [[1, 40, 41, 42], [1, 50], [1, 60, 61, 62, 63, 64, 65], [1, 40, 41, 43], [1, 70, 71]]
LONGEST = 24


def alone(model: Transformer, prompt: list[int], ends: frozenset[int], longest: int = LONGEST) -> list[int]:
    pieces = generate(model, prompt, Sampling(temperature=0, max_tokens=longest), model.tokenizer)
    said = [token for piece in pieces for token in piece.tokens]
    return next((said[:i] for i, token in enumerate(said) if token in ends), said)


def test_a_batch_says_what_each_says_alone(model: Transformer) -> None:
    whole = [alone(model, prompt, frozenset()) for prompt in PROMPTS]
    # ends that these very replies reach at different places, so that sequences leave the batch one by one
    ends = end_tokens(model, model.tokenizer) | {whole[0][5], whole[2][11]}
    expected = [alone(model, prompt, ends) for prompt in PROMPTS]
    assert len({len(said) for said in expected}) > 1
    assert replies(model, PROMPTS, ends, LONGEST) == expected


def test_questions_go_on_from_copies_of_one_context(model: Transformer) -> None:
    generator = torch.Generator().manual_seed(5)
    context = [1, *torch.randint(32, model.config.vocab_size, (150,), generator=generator).tolist()]
    questions, ends = [prompt[1:] for prompt in PROMPTS], end_tokens(model, model.tokenizer)
    expected = [alone(model, context + question, ends) for question in questions]
    cache = prefill(model, context, chunk=32)
    assert replies(model, questions, ends, LONGEST, cache=cache.fork([0] * len(questions))) == expected
    assert cache.lengths == [151]  # a fork's growth is its own
    for question, said in zip(questions, expected, strict=True):
        assert replies(model, [question], ends, LONGEST, cache=cache.fork()) == [said]


def test_selection_reaches_the_model(model: Transformer) -> None:
    prompt = [1, *range(40, 140)]
    said = [replies(model, [prompt], (), LONGEST, selection)[0] for selection in ("sparse", "dense")]
    cached = [replies(model, [[50]], (), LONGEST, s, prefill(model, prompt, s))[0] for s in ("sparse", "dense")]
    assert said[0] != said[1] and cached[0] != cached[1]
    with torch.inference_mode():
        assert said[1][0] == int(model(torch.tensor([prompt]), selection="dense").logits[0, -1].argmax())


def test_what_does_not_fit_is_refused(model: Transformer) -> None:
    assert len(replies(model, [[1] * 510], (), 3)[0]) == 3  # the last token is said, not read
    with pytest.raises(ConfigError, match="exceed the 512 positions"):
        replies(model, [[1] * 510], (), 4)
