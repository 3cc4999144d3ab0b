"""A cache that is used again: prompts with media, cut anywhere, and what counts as a common beginning."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from fourfold.engine.sequence import Sequence, contents, shown
from fourfold.media import spans
from fourfold.media.spans import Span
from fourfold.modality import Modality
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests.compare import assert_close
from tests.omni import TOGETHER, a_clip, a_picture, a_sound, asked, picture


def plain(model: Transformer, prompt: Span) -> torch.Tensor:
    """Logits [V] after one full forward."""
    with torch.inference_mode():
        return model(model.batch([prompt])).logits[-1]


def everything(tokenizer: Tokenizer) -> Span:
    """A picture, a clip, sound and a drawing among words."""
    drawn = spans.drawing(torch.arange(6).view(2, 3), tokenizer)
    return asked(tokenizer, a_picture(tokenizer), "the cat", a_clip(tokenizer), a_sound(tokenizer), drawn, "sat", drawn)


@pytest.mark.parametrize("chunk", [1, 2, 3, 5, 7, 11, 16, 200])
def test_chunked_prefill_is_unchunked(omni: Transformer, tokenizer: Tokenizer, chunk: int) -> None:
    prompt = everything(tokenizer)
    sequence = Sequence(omni)
    assert_close(sequence.feed(prompt, chunk), plain(omni, prompt), f"chunks of {chunk}")
    assert len(sequence) == len(prompt) == sequence.cache.lengths[0]


def test_different_pictures_are_no_common_beginning(omni: Transformer, tokenizer: Tokenizer) -> None:
    first, second = (asked(tokenizer, "the", a_picture(tokenizer, seed), "cat") for seed in (1, 2))
    assert torch.equal(first.tokens, second.tokens) and torch.equal(first.modality, second.modality)
    sequence = Sequence(omni)
    sequence.feed(first)
    rest = sequence.rewind(second)
    start = shown(second.modality)[0][0]
    assert len(rest) == len(second) - start  # the words before it, and its mark, are common
    assert_close(sequence.feed(rest), plain(omni, second), "after another picture")


def test_the_end_of_a_picture_counts_from_its_beginning(omni: Transformer, tokenizer: Tokenizer) -> None:
    """With a tower, patches know what comes after them in their picture."""
    first = a_picture(tokenizer, 1, 16, 16)
    pixels = first.pixels.clone()
    pixels[-1] = 255 - pixels[-1]
    second = Span(first.tokens, first.modality, first.positions, pixels)
    sequence = Sequence(omni)
    sequence.feed(asked(tokenizer, first))
    assert len(sequence.rewind(asked(tokenizer, second))) == len(asked(tokenizer, second)) - 3  # <|bos|><|user|><|image|>


@pytest.mark.parametrize("make", [a_picture, a_clip, a_sound])
def test_what_is_shown_again_is_common(omni: Transformer, tokenizer: Tokenizer, make) -> None:
    first, second = (asked(tokenizer, make(tokenizer), "the cat", tail) for tail in ("sat", "ran"))
    sequence = Sequence(omni)
    sequence.feed(first)
    rest = sequence.rewind(second)
    assert len(rest) < 8 and not rest.modality.any()
    assert_close(sequence.feed(rest), plain(omni, second), "reused")


def test_a_clip_is_common_as_a_whole_or_not_at_all(omni: Transformer, tokenizer: Tokenizer) -> None:
    """Its frames are counted from the first, so none of them is gone on from; and two clips are two things."""
    frames = [picture(seed, 16, 8) for seed in range(4)]
    times = [0.0, 0.2, 0.5]
    clips = [spans.clip(torch.stack([*frames[:2], last]), times, tokenizer, 8, TOGETHER) for last in frames[2:]]
    first, second = (asked(tokenizer, clip, "sat") for clip in clips)
    sequence = Sequence(omni)
    sequence.feed(first)
    rest = sequence.rewind(second)
    assert (rest.modality == Modality.VIDEO).sum() == (second.modality == Modality.VIDEO).sum()
    assert_close(sequence.feed(rest), plain(omni, second), "reused")
    assert len(shown(spans.join([a_clip(tokenizer), a_clip(tokenizer)]).modality)) == 2


def test_a_clip_shown_at_other_times_is_another(tokenizer: Tokenizer) -> None:
    frames = torch.zeros(3, 3, 8, 8, dtype=torch.uint8)
    first, second = (spans.clip(frames, [0.0, 0.1, later], tokenizer, 8, TOGETHER) for later in (0.2, 0.9))
    assert contents(first) != contents(second) and contents(first) == contents(first)


def test_a_code_is_not_the_token_of_its_number(tokenizer: Tokenizer) -> None:
    drawn = spans.drawing(torch.tensor([[40, 41]]), tokenizer)
    written = Span(drawn.tokens, torch.zeros_like(drawn.modality), drawn.positions)
    assert contents(drawn) != contents(written)


@given(some.integers(1, 60), some.integers(1, 30))
def test_a_prompt_broken_off_inside_a_picture_is_gone_on_with(
    omni: Transformer, tokenizer: Tokenizer, stop: int, chunk: int
) -> None:
    prompt = asked(tokenizer, a_picture(tokenizer), "the", a_clip(tokenizer), a_sound(tokenizer))
    stop, sequence = min(stop, len(prompt) - 1), Sequence(omni)
    with torch.inference_mode():
        whole = omni.batch([prompt])
        omni.trunk(whole.cut(0, stop), cache=sequence.cache)
    sequence.seen = contents(prompt)[:stop]
    assert_close(sequence.feed(sequence.rewind(prompt), chunk), plain(omni, prompt), f"broken off at {stop}")
