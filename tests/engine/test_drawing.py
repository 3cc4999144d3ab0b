"""Drawings: cached = plain, laid out as media/spans.py does, guided as the formula says, and read back."""

import pytest
import torch
from torch import Tensor

from fourfold.engine.canvas import Drawing, guided, pixels_of, unasked
from fourfold.engine.generate import Piece, generate
from fourfold.engine.sampler import Sampling, sample
from fourfold.engine.sequence import Sequence
from fourfold.errors import ConfigError
from fourfold.media import spans
from fourfold.media.spans import Span
from fourfold.model.transformer import Transformer
from fourfold.text.chats.events import DrawingBegun, DrawingCodes, DrawingFinished
from fourfold.text.tokenizer import Tokenizer
from tests.compare import assert_close
from tests.omni import a_picture, a_sound, asked

GRIDS = [(3, 4), (1, 1), (2, 3, 2), (3, 1, 1)]


def opened(tokenizer: Tokenizer, prompt: Span, grid: tuple[int, ...]) -> Span:
    opening = spans.draw_opening if len(grid) == 2 else spans.film_opening
    return spans.join([prompt, opening(tokenizer, *grid)])


def laid(tokenizer: Tokenizer, prompt: Span, codes: Tensor) -> Span:
    return spans.join([prompt, (spans.drawing if codes.dim() == 2 else spans.film)(codes, tokenizer)])


def drawn(
    model: Transformer, prompt: Span, grid: tuple[int, ...], guidance: float, seed: int = 5, **more
) -> tuple[Tensor, list[Piece]]:
    """The codes, and all pieces; the answer ends with the drawing."""
    whole = opened(model.tokenizer, prompt, grid)
    sampling, drawing = Sampling(seed=seed, max_tokens=None), Drawing(guidance=guidance)
    pieces = []
    for piece in generate(model, whole, sampling, model.tokenizer, drawing=drawing, **more):
        pieces.append(piece)
        if isinstance(piece.drawing, DrawingFinished):
            return piece.drawing.codes, pieces
    raise AssertionError("nothing was drawn")


def code_logits(model: Transformer, span: Span) -> Tensor:
    """fp32 [codes of the span, K]: what one full forward says at each of its codes."""
    places = (span.modality > 3).nonzero()[:, 0]
    with torch.inference_mode():
        return model.code_logits(model.trunk(model.batch([span]))[places - 1])


@pytest.mark.parametrize("guidance", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("grid", GRIDS)
def test_a_drawing_is_what_full_forwards_say(omni: Transformer, tokenizer: Tokenizer, grid, guidance: float) -> None:
    """Every code is the draw of u + g (c - u), c and u from one full forward each; guidance 1 is c alone."""
    prompt = asked(tokenizer, a_picture(tokenizer), "the cat")
    codes, _ = drawn(omni, prompt, grid, guidance)
    assert tuple(codes.shape) == grid
    logits = code_logits(omni, laid(tokenizer, prompt, codes))
    if guidance != 1:
        without = code_logits(omni, laid(tokenizer, unasked(tokenizer), codes))
        logits = without + guidance * (logits - without)
    generator = Sampling(seed=5).generator()
    assert codes.flatten().tolist() == [sample(row, Sampling(1.0), generator) for row in logits]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize("grid", [(3, 4), (2, 3, 2)])
def test_the_cache_goes_on_behind_a_drawing(omni: Transformer, tokenizer: Tokenizer, grid, guidance: float) -> None:
    """What was drawn token by token, and twins beside it, is what the same sequence laid out at once gives."""
    prompt, sequence = asked(tokenizer, a_sound(tokenizer), "the dog"), Sequence(omni)
    codes, _ = drawn(omni, prompt, grid, guidance, sequence=sequence)
    whole = laid(tokenizer, prompt, codes)
    rest = sequence.rewind(spans.join([whole, spans.text(tokenizer.encode("sat"))]))
    assert len(rest) <= len(tokenizer.encode("sat")) + 2  # the last code at most, the end of the drawing, and the word
    with torch.inference_mode():
        plain = omni(omni.batch([spans.join([whole, spans.text(tokenizer.encode("sat"))])])).logits[-1]
    assert_close(sequence.feed(rest), plain, "behind a drawing")


def test_what_the_twins_are_shown() -> None:
    logits = torch.tensor([[1.0, 2.0], [0.5, 4.0]])
    assert torch.equal(guided(logits, 3.0), torch.tensor([[2.0, -2.0]])) and guided(logits, 1.0) is logits
    for wrong in (-0.1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="^guidance: is [^\n]+$"):
            Drawing(guidance=wrong)


def test_guidance_of_one_costs_nothing(omni: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: dict[float, list[tuple[int, ...]]] = {}
    trunk = omni.trunk
    for guidance in (1.0, 1.5):
        seen = fed.setdefault(guidance, [])
        monkeypatch.setattr(omni, "trunk", lambda batch, seen=seen, **more: seen.append(batch.lengths) or trunk(batch, **more))
        drawn(omni, asked(tokenizer, "the cat"), (2, 2), guidance)
    prompt = len(asked(tokenizer, "the cat")) + 5  # <|draw|>2x2<|frame|>
    assert fed[1.0] == [(prompt,), (1,), (1,), (1,)]
    assert fed[1.5] == [(prompt - 1,), (1, 4 + 5), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_a_film_is_fed_its_marks_with_its_codes(
    omni: Transformer, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    fed: list[int] = []
    trunk = omni.trunk
    monkeypatch.setattr(omni, "trunk", lambda batch, **more: fed.append(batch.longest) or trunk(batch, **more))
    _, pieces = drawn(omni, asked(tokenizer, "the cat"), (2, 1, 2), guidance)
    assert fed[-3:] == [1, 2, 1]  # a code; a code and <|frame|>; a code
    assert [type(piece.drawing) for piece in pieces] == [DrawingBegun, *[DrawingCodes] * 4, DrawingFinished]


def test_pixels_are_what_the_codec_makes_of_the_codes(omni: Transformer, tokenizer: Tokenizer) -> None:
    for grid in ((2, 3), (2, 1, 2)):
        codes, pieces = drawn(omni, asked(tokenizer, "the cat"), grid, 1.5)
        pixels, frames = pieces[-1].drawing.pixels, codes.view(-1, *grid[-2:])
        assert pixels.dtype == torch.uint8 and tuple(pixels.shape) == (len(frames), 3, grid[-2] * 8, grid[-1] * 8)
        assert torch.equal(pixels, (omni.codec.decode(frames[None])[0] * 255).round().byte())
    assert pixels_of(torch.nn.Module(), codes) is None


def test_an_interrupted_drawing_leaves_no_trace(omni: Transformer, tokenizer: Tokenizer) -> None:
    prompt, sequence = asked(tokenizer, "the cat"), Sequence(omni)
    for guidance in (1.0, 2.0):
        pieces = generate(
            omni,
            opened(tokenizer, prompt, (3, 4)),
            Sampling(seed=1, max_tokens=None),
            tokenizer,
            sequence,
            drawing=Drawing(guidance=guidance),
        )
        for _ in range(7):
            next(pieces)
        pieces.close()
        again = asked(tokenizer, "the cat", "sat")
        with torch.inference_mode():
            plain = omni(omni.batch([again])).logits[-1]
        assert_close(sequence.feed(sequence.rewind(again)), plain, "after half a drawing")


def test_a_drawing_that_the_model_begins_is_in_its_own_answer(omni: Transformer, tokenizer: Tokenizer, monkeypatch) -> None:
    """Text, a drawing and text again, in one answer; stop strings and halves of characters do not reach across."""
    half = next(i for i in range(400) if tokenizer.bytes_of(i) == b"\xc3")  # the first byte of a letter
    before = [*tokenizer.encode("do"), half, tokenizer.special("draw")]
    size = tokenizer.encode("2x2")  # the x has to come, as does <|frame|>: nobody is asked
    told = iter([*before, size[0], size[2], *tokenizer.encode("g."), tokenizer.special("end")])

    def said(logits: Tensor, sampling: Sampling, generator) -> int:
        if len(logits) != tokenizer.vocab_size:
            return sample(logits, sampling, generator)
        token = next(told)
        assert logits[token].isfinite()
        return token

    monkeypatch.setattr("fourfold.engine.chooser.sample", said)
    pieces = list(generate(omni, asked(tokenizer, "x"), Sampling(0, stop="dog", max_tokens=40), tokenizer))
    drew = [DrawingBegun, *[DrawingCodes] * 4, DrawingFinished]
    assert "".join(piece.text for piece in pieces) == "do\ufffdg." and pieces[-1].finish_reason == "stop"
    place = next(i for i, piece in enumerate(pieces) if piece.drawing)
    assert "".join(piece.text for piece in pieces[:place]) == "do\ufffd"
    assert [type(piece.drawing) for piece in pieces[place : place + 6]] == drew
    assert [token for piece in pieces[:place] for token in piece.tokens] == [*before, *size, tokenizer.special("frame")]
