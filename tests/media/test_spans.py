"""How media stand in a sequence: every token in its place, positions as documented, and cut anywhere nothing is lost."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourfold.media import spans
from fourfold.media.spans import Span, join
from fourfold.modality import CODES, READ, Modality
from fourfold.text.tokenizer import Tokenizer

PATCH = 4


def pixels(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def names(span: Span, tokenizer: Tokenizer) -> str:
    """Control tokens by name, others by their modality's first letter, and text as it reads."""
    known = {tokenizer.special(name): name for name in tokenizer.controls}
    words = []
    for token, kind in zip(span.tokens.tolist(), span.modality.tolist(), strict=True):
        text = known.get(token) or tokenizer.decode([token])
        words.append(text if kind == Modality.TEXT else Modality(kind).name[0].lower())
    return "".join(words)


def assert_same(actual: Span, expected: Span) -> None:
    for field in ("tokens", "modality", "positions", "pixels", "mel"):
        mine, theirs = getattr(actual, field), getattr(expected, field)
        assert (mine is None) == (theirs is None) and (mine is None or torch.equal(mine, theirs)), field


def owned(span: Span, *kinds: Modality) -> Tensor:
    return torch.isin(span.modality, torch.tensor(kinds, dtype=torch.uint8))


def assert_sound(span: Span) -> None:
    """What holds of every span: shapes and types, a patch for each place that is read, zeros for tokens there."""
    assert span.tokens.dtype == span.positions.dtype == torch.long and span.modality.dtype == torch.uint8
    assert span.tokens.shape == span.modality.shape == (len(span),) and span.positions.shape == (3, len(span))
    for patches, kinds, dtype in (
        (span.pixels, (Modality.IMAGE, Modality.VIDEO), torch.uint8),
        (span.mel, (Modality.AUDIO,), torch.float32),
    ):
        count = int(owned(span, *kinds).sum())
        assert patches is None if not count else patches.dtype == dtype and len(patches) == count
    assert not span.tokens[owned(span, *READ)].any()
    plain = owned(span, Modality.TEXT)
    assert torch.equal(span.positions[:, plain], torch.arange(len(span))[plain].expand(3, -1))


def whole(tokenizer: Tokenizer) -> Span:
    """A document with everything in it."""
    return join(
        [
            spans.text(tokenizer.encode("the cat")),
            spans.picture(pixels(3, 8, 12), tokenizer, PATCH),
            spans.text(tokenizer.encode(" sat")),
            spans.clip(pixels(3, 3, 4, 8), [0.0, 0.2, 0.5], tokenizer, PATCH),
            spans.sound(torch.randn(21, 5), tokenizer, 8),
            spans.drawing(torch.randint(0, 99, (2, 3)), tokenizer),
            spans.text(tokenizer.encode(" and")),
            spans.film(torch.randint(0, 99, (3, 2, 2)), tokenizer),
        ]
    )


def test_a_picture_is_rows_of_patches(tokenizer: Tokenizer) -> None:
    picture = pixels(3, 8, 12)
    span = spans.picture(picture, tokenizer, PATCH)
    assert names(span, tokenizer) == "<|image|>iii<|row|>iii<|row|><|/image|>"
    assert_sound(span)
    # What follows <|image|> stands at place 1; a patch adds its row and column to that, row ends are text.
    assert span.positions.T[1:9].tolist() == [
        [1, 1, 1], [1, 1, 2], [1, 1, 3], [4, 4, 4], [1, 2, 1], [1, 2, 2], [1, 2, 3], [8, 8, 8],
    ]  # fmt: skip
    for row in range(2):
        for column in range(3):
            there = picture[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
            assert torch.equal(span.pixels[3 * row + column], there.flatten())


def test_a_clip_is_frames_in_time(tokenizer: Tokenizer) -> None:
    frames = pixels(3, 3, 4, 8)
    span = spans.clip(frames, [0.0, 0.16, 0.33], tokenizer, PATCH)
    assert names(span, tokenizer) == "<|video|>" + "<|frame|>vv<|row|>" * 3 + "<|/video|>"
    assert_sound(span)
    seen = owned(span, Modality.VIDEO)
    assert span.positions.T[seen].tolist() == [[2, 2, 2], [2, 2, 3], [4, 2, 2], [4, 2, 3], [6, 2, 2], [6, 2, 3]]  # 80 ms a tick
    assert torch.equal(span.pixels, spans.patches_of(frames, PATCH).flatten(0, 2))
    still = spans.clip(frames[:1], [0.0], tokenizer, PATCH)
    assert torch.equal(still.pixels, spans.picture(frames[0], tokenizer, PATCH).pixels)


def test_frames_of_a_clip_may_share_their_patches(tokenizer: Tokenizer) -> None:
    """The last group is filled up with the last frame; a picture is as many equal frames."""
    frames = pixels(5, 3, 8, 4)
    span = spans.clip(frames, [0.0, 0.16, 0.33, 0.5, 0.66], tokenizer, PATCH, together=2)
    assert names(span, tokenizer) == "<|video|>" + "<|frame|>v<|row|>v<|row|>" * 3 + "<|/video|>"
    assert_sound(span)
    assert span.positions[0, owned(span, Modality.VIDEO)].tolist() == [2, 2, 6, 6, 10, 10]  # each group's first frame
    shown = span.pixels.view(3, 2, 2, 3, PATCH, PATCH)  # groups, rows, frames
    for group, both in enumerate([(0, 1), (2, 3), (4, 4)]):
        for row in range(2):
            assert torch.equal(shown[group, row], frames[list(both), :, PATCH * row : PATCH * row + PATCH])
    still = spans.clip(frames[:1], [0.0], tokenizer, PATCH, together=2)
    assert torch.equal(still.pixels, spans.picture(frames[0], tokenizer, PATCH, together=2).pixels)
    assert names(spans.clip(frames, [0.0] * 5, tokenizer, PATCH, together=8), tokenizer).count("v<") == 2
    with pytest.raises(ValueError, match="5 frames are shown at 4 times"):
        spans.clip(frames, [0.0] * 4, tokenizer, PATCH, together=2)


def test_sound_goes_on_like_text(tokenizer: Tokenizer) -> None:
    mel = torch.randn(21, 5)
    span = spans.sound(mel, tokenizer, 8)
    assert names(span, tokenizer) == "<|audio|>aaa<|/audio|>"
    assert_sound(span)
    assert torch.equal(span.positions, torch.arange(5).expand(3, -1))
    assert torch.equal(span.mel.reshape(24, 5)[:21], mel) and bool((span.mel.reshape(24, 5)[21:] == mel.min()).all())
    assert torch.equal(spans.sound(mel[:16], tokenizer, 8).mel, mel[:16].reshape(2, 40))  # nothing to fill up


def test_drawings_say_their_size_first(tokenizer: Tokenizer) -> None:
    codes = torch.randint(0, 99, (2, 3))
    span = spans.drawing(codes, tokenizer)
    assert names(span, tokenizer) == "<|draw|>2x3<|frame|>dddddd<|/draw|>"
    assert_sound(span)
    drawn = owned(span, Modality.DRAWN)
    first = int(drawn.nonzero()[0])
    assert span.tokens[drawn].tolist() == codes.flatten().tolist()
    assert (span.positions.T[drawn] - first).tolist() == [[0, r, c] for r in range(2) for c in range(3)]
    assert_same(span.cut(0, first), spans.draw_opening(tokenizer, 2, 3))


def test_films_are_eight_frames_a_second(tokenizer: Tokenizer) -> None:
    codes = torch.randint(0, 99, (4, 2, 1))
    span = spans.film(codes, tokenizer)
    assert names(span, tokenizer) == "<|film|>4x2x1<|frame|>ff" + "<|frame|>ff" * 3 + "<|/film|>"
    assert_sound(span)
    filmed = owned(span, Modality.FILMED)
    first = int(filmed.nonzero()[0])
    assert span.tokens[filmed].tolist() == codes.flatten().tolist()
    ticks = [int(i * 0.125 / 0.08) for i in range(4)]  # 0, 1, 3, 4
    assert (span.positions.T[filmed] - first).tolist() == [[tick, r, 0] for tick in ticks for r in range(2)]
    assert_same(span.cut(0, first), spans.film_opening(tokenizer, 4, 2, 1))


def test_a_film_can_be_continued_frame_by_frame(tokenizer: Tokenizer) -> None:
    """What an engine does: the opening, then the codes of one frame after another, positions from the first code on."""
    codes = torch.randint(0, 99, (3, 2, 2))
    span, opening = spans.film(codes, tokenizer), spans.film_opening(tokenizer, 3, 2, 2)
    at = len(opening)
    for index, frame in enumerate(codes):
        part = spans.code_frame(frame, index, Modality.FILMED)
        there = span.cut(at, at + 4)
        assert torch.equal(there.tokens, part.tokens) and torch.equal(there.modality, part.modality)
        assert torch.equal(there.positions, part.positions + len(opening))
        at += 5  # and the mark of the next frame


def test_what_follows_a_span_has_its_own_place(tokenizer: Tokenizer) -> None:
    parts = [spans.text([40, 41]), spans.picture(pixels(3, 8, 8), tokenizer, PATCH), spans.text([42])]
    span = join(parts)
    assert_sound(span)
    assert span.positions[:, -1].tolist() == [2 + 8] * 3
    assert torch.equal(span.positions[:, 2:10], parts[1].positions + 2)
    assert_same(join([join(parts[:2]), parts[2]]), span)
    assert_same(join([parts[0], join(parts[1:])]), span)
    assert len(join([spans.text([])])) == 0


def test_a_document_cut_anywhere_is_whole(tokenizer: Tokenizer) -> None:
    span = whole(tokenizer)
    assert_sound(span)
    assert {Modality(kind) for kind in span.modality.tolist()} == {*READ, *CODES, Modality.TEXT}
    for place in range(len(span) + 1):
        assert_same(_glued([span.cut(0, place), span.cut(place, len(span))]), span)


@given(st.lists(st.integers(0, 200), max_size=6), st.integers(0, 200), st.integers(0, 200))
def test_pieces_of_any_size_and_pieces_of_pieces(tokenizer: Tokenizer, places: list[int], start: int, stop: int) -> None:
    span = whole(tokenizer)
    ends = sorted(min(place, len(span)) for place in (*places, 0, len(span)))
    assert_same(_glued([span.cut(a, b) for a, b in zip(ends, ends[1:], strict=False)]), span)
    start, stop = sorted((start % len(span), stop % len(span)))
    inner = span.cut(start, len(span)).cut(0, stop - start)
    assert_same(inner, span.cut(start, stop))
    for patches, kinds in ((inner.pixels, (Modality.IMAGE, Modality.VIDEO)), (inner.mel, (Modality.AUDIO,))):
        assert int(owned(inner, *kinds).sum()) == (0 if patches is None else len(patches))


@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 4), st.integers(1, 3))
def test_patches_of_any_grid_are_where_they_were(rows: int, columns: int, patch: int, count: int) -> None:
    frames = pixels(count, 3, rows * patch, columns * patch)
    patches = spans.patches_of(frames, patch)
    assert patches.shape == (count, rows, columns, 3 * patch * patch)
    strips = [torch.cat([patch_of.view(3, patch, patch) for patch_of in row], 2) for grid in patches for row in grid]
    assert torch.equal(torch.cat(strips, 1), torch.cat(list(frames), 1))


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda t: spans.picture(pixels(3, 8, 9), t, PATCH), "a picture of 9 x 8 pixels does not divide into patches of 4; fit it"),
        (lambda t: spans.clip(pixels(1, 3, 2, 4), [0.0], t, PATCH), "a picture of 4 x 2 pixels does not divide"),
        (lambda t: spans.picture(pixels(3, 0, 4), t, PATCH), "a picture of 4 x 0 pixels does not divide"),
        (lambda t: spans.clip(pixels(2, 3, 4, 4), [0.0], t, PATCH), "2 frames are shown at 1 times"),
        (lambda t: spans.sound(torch.zeros(0, 5), t, 8), "the sound has no frames"),
    ],
)
def test_what_has_no_place(make: Callable[[Tokenizer], Span], said: str, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=said):
        make(tokenizer)


def _glued(pieces: list[Span]) -> Span:
    """Pieces of one span, whose positions are already those of the whole."""

    def together(parts: list[Tensor | None]) -> Tensor | None:
        present = [part for part in parts if part is not None]
        return torch.cat(present) if present else None

    tokens, modality = torch.cat([p.tokens for p in pieces]), torch.cat([p.modality for p in pieces])
    positions = torch.cat([p.positions for p in pieces], 1)
    return Span(tokens, modality, positions, together([p.pixels for p in pieces]), together([p.mel for p in pieces]))
