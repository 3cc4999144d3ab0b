"""Many prompts at once: each answer and each drawing is what it would be alone."""

import pytest
import torch

from fourfold.engine.batches import answer, draw
from fourfold.engine.canvas import Drawing
from fourfold.engine.generate import generate
from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError
from fourfold.media.spans import Span
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests.engine.test_drawing import drawn
from tests.omni import a_clip, a_picture, a_sound, asked

CODES = Sampling(1.0, seed=7)


@pytest.fixture
def prompts(tokenizer: Tokenizer) -> list[Span]:
    """Of many lengths, with media and without."""
    shown = [
        a_picture(tokenizer),
        "the cat sat on the mat",
        a_clip(tokenizer, 3),
        a_sound(tokenizer),
        a_picture(tokenizer, 4, 8, 8),
    ]
    return [asked(tokenizer, part, "the dog") for part in shown] + [asked(tokenizer)]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("grid", [(2, 3), (2, 1, 2)])
def test_drawings_side_by_side_are_drawings_alone(omni: Transformer, prompts: list[Span], grid, guidance: float) -> None:
    alone = torch.stack([drawn(omni, prompt, grid, guidance, seed=7 + i)[0] for i, prompt in enumerate(prompts)])
    assert torch.equal(draw(omni, prompts, grid, CODES, guidance), alone)
    assert torch.equal(draw(omni, prompts, grid, CODES, guidance, at_once=4), alone)
    assert len(alone.flatten(1).unique(dim=0)) == len(prompts)
    assert draw(omni, [], grid).shape == (0, *grid)


@pytest.mark.parametrize("sampling", [Sampling(0), Sampling(1.5, seed=3)])
def test_answers_side_by_side_are_answers_alone(omni: Transformer, tokenizer: Tokenizer, prompts: list[Span], sampling) -> None:
    alone = []
    for i, prompt in enumerate(prompts):
        own = Sampling(sampling.temperature, seed=None if sampling.seed is None else sampling.seed + i, max_tokens=12)
        pieces = list(generate(omni, prompt, own, tokenizer, drawing=Drawing(begin=False)))
        alone.append("".join(piece.text for piece in pieces))
    assert answer(omni, prompts, 12, sampling) == answer(omni, prompts, 12, sampling, at_once=2) == alone
    assert len(set(alone)) > 1 and answer(omni, [], 12) == []


def test_what_does_not_fit_is_refused(omni: Transformer, prompts: list[Span]) -> None:
    with pytest.raises(ConfigError, match="exceed the 256 positions of the model; shorten the prompt$"):
        draw(omni, prompts, (16, 16))
    with pytest.raises(ConfigError, match="exceed the 256 positions of the model; shorten the prompt$"):
        answer(omni, prompts, 250)
    with pytest.raises(ConfigError, match="^grid: is 2; give rows x columns"):
        draw(omni, prompts, (2,))
    with pytest.raises(ConfigError, match="^guidance: is -1"):
        draw(omni, prompts, (2, 2), guidance=-1)
