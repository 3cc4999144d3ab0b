"""Whatever the logits say, what comes out is words and whole drawings."""

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from fourfold.engine.canvas import Drawing
from fourfold.engine.generate import generate
from fourfold.engine.grammar import NEVER, Grammar
from fourfold.engine.layout import length, openings
from fourfold.engine.sampler import Sampling
from fourfold.engine.sequence import Sequence, contents
from fourfold.errors import ConfigError
from fourfold.media import spans
from fourfold.media.spans import Span
from fourfold.model.inputs import Batch
from fourfold.model.transformer import Transformer
from fourfold.text.chats.events import DrawingBegun, DrawingCodes, DrawingFinished
from fourfold.text.tokenizer import Tokenizer
from tests.omni import CLIP, CODES, PICTURE, a_picture, asked


class Noise(torch.nn.Module):
    """Stands for a model: random logits, in which some tokens are likelier; keeps what it is fed."""

    def __init__(self, omni: Transformer, seed: int, likely: list[int]) -> None:
        super().__init__()
        self.config, self.batch, self.embed, self.new_cache = omni.config, omni.batch, omni.embed, omni.new_cache
        self.tokenizer = omni.tokenizer
        self.generator, self.likely = torch.Generator().manual_seed(seed), likely

    def trunk(self, batch: Batch, cache, selection: str) -> torch.Tensor:
        fields = {"tokens": batch.tokens, "documents": batch.documents, "modality": batch.modality, "positions": batch.positions.T}
        cache.inputs.append(batch.lengths, **fields)
        return torch.zeros(len(batch.tokens), 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        noise = torch.rand(len(hidden), self.config.vocab_size, generator=self.generator) * 3
        noise[:, self.likely] += 8
        noise[:, self.tokenizer.special("end")] += 4
        return noise

    def code_logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.rand(len(hidden), CODES, generator=self.generator) * 8


def parse(tokenizer: Tokenizer, tokens: list[int], modality: list[int]) -> Span:
    """The same sequence laid out by media/spans.py: runs of words, and drawings of the codes that stand in it.

    Fails for a mark of media outside a drawing, or a drawing that is not whole.
    """
    marks = {tokenizer.special(name) for name in NEVER}
    parts, place = [], 0
    while place < len(tokens):
        if tokens[place] not in (tokenizer.special("draw"), tokenizer.special("film")) or modality[place]:
            assert tokens[place] not in marks and not modality[place], f"a stray token at {place}"
            parts.append(spans.text([tokens[place]]))
            place += 1
            continue
        opening = tokens.index(tokenizer.special("frame"), place)
        said = tokenizer.decode(tokens[place + 1 : opening])
        assert re.fullmatch(r"\d+(x\d+){1,2}", said)
        grid = tuple(map(int, said.split("x")))
        largest = PICTURE if tokens[place] == tokenizer.special("draw") else CLIP
        assert len(grid) == len(largest) and all(a <= b for a, b in zip(grid, largest, strict=True))
        blank = spans.drawing if len(grid) == 2 else spans.film
        frame = blank(torch.zeros(grid, dtype=torch.long), tokenizer)
        codes = torch.tensor(tokens[place : place + len(frame)])[frame.modality > 0]
        parts.append(blank(codes.view(grid), tokenizer))
        place += len(frame)
    assert place == len(tokens), "a drawing is cut off"
    return spans.join(parts)


@given(some.integers(0, 10**6), some.integers(1, 120), some.booleans(), some.sampled_from([1.0, 2.0]))
def test_every_outcome_is_words_and_whole_drawings(
    omni: Transformer, tokenizer: Tokenizer, seed: int, room: int, begin: bool, guidance: float
) -> None:
    likely = [tokenizer.special(name) for name in ("draw", "film", "frame", "row", "/draw", "image", "pad")]
    model, prompt = Noise(omni, seed, likely), asked(tokenizer, a_picture(tokenizer), "the cat")
    sequence, sampling = Sequence(model), Sampling(1.0, seed=seed, max_tokens=room)
    pieces = list(generate(model, prompt, sampling, tokenizer, sequence, drawing=Drawing(begin, guidance=guidance)))
    # what the last step gave has not been read yet
    sequence.feed(sequence_rest(sequence, prompt, pieces, tokenizer))
    inputs = {name: sequence.cache.inputs.read(name)[0] for name in ("tokens", "modality", "positions")}
    said, kinds = inputs["tokens"].tolist()[len(prompt) :], inputs["modality"].tolist()[len(prompt) :]
    parsed = spans.join([prompt, parse(tokenizer, said, kinds)])
    assert parsed.tokens.tolist() == inputs["tokens"].tolist() and parsed.modality.tolist() == inputs["modality"].tolist()
    assert torch.equal(parsed.positions.T, inputs["positions"].long())
    assert sequence.seen == contents(parsed)
    drawn = [piece.drawing for piece in pieces if piece.drawing]
    assert begin or not drawn
    assert len(said) <= room and (pieces[-1].finish_reason == "stop") == (said[-1] in tokenizer.ends)
    assert events_are_whole(drawn)


def sequence_rest(sequence: Sequence, prompt: Span, pieces: list, tokenizer: Tokenizer) -> Span:
    """What the pieces tell beyond what the sequence has seen: a token, or the end of a drawing with its last code."""
    told: list[tuple[int, int]] = []
    for piece in pieces:
        match piece.drawing:
            case DrawingBegun(grid):
                layout = (spans.drawing if len(grid) == 2 else spans.film)(torch.zeros(grid, dtype=torch.long), tokenizer)
            case DrawingFinished(codes):
                whole = (spans.drawing if codes.dim() == 2 else spans.film)(codes, tokenizer)
                done = next(i for i, kind in enumerate(whole.modality.tolist()) if kind)
                told += list(zip(whole.tokens.tolist(), whole.modality.tolist(), strict=True))[done:]
            case None:
                told += [(token, 0) for token in piece.tokens]
            case DrawingCodes():
                assert layout is not None
    tokens = torch.tensor([token for token, _ in told])
    parsed = spans.join([prompt, parse(tokenizer, tokens.tolist(), [kind for _, kind in told])])
    return parsed.cut(len(sequence), len(parsed))


def events_are_whole(drawn: list) -> bool:
    """begun, its codes one by one, finished with the same."""
    while drawn:
        begun, count = drawn[0], len(drawn[0].grid) and int(torch.tensor(drawn[0].grid).prod())
        codes, finished = drawn[1 : 1 + count], drawn[1 + count]
        assert isinstance(begun, DrawingBegun) and isinstance(finished, DrawingFinished)
        assert [code for event in codes for code in event.codes] == finished.codes.flatten().tolist()
        assert tuple(finished.codes.shape) == begun.grid
        drawn = drawn[2 + count :]
    return True


def test_sizes_that_do_not_fit_cannot_be_said(omni: Transformer, tokenizer: Tokenizer) -> None:
    for mark, largest in (("draw", PICTURE), ("film", CLIP)):
        sizes = openings(largest, tokenizer)
        assert len(sizes) == torch.tensor(largest).prod()
        for grid, ids in sizes:
            blank = (spans.drawing if len(grid) == 2 else spans.film)(torch.zeros(grid, dtype=torch.long), tokenizer)
            assert length(grid, ids) == len(blank) and blank.tokens.tolist()[1 : 1 + len(ids)] == ids
        smallest = min(length(*size) for size in sizes)
        grammar, logits = Grammar(omni.config, tokenizer), torch.zeros(tokenizer.vocab_size)
        assert grammar.masked(logits, smallest)[tokenizer.special(mark)] == 0
        assert grammar.masked(logits, smallest - 1)[tokenizer.special(mark)] == -torch.inf
        grammar.take(tokenizer.special(mark))
        said = []
        for left in range(smallest - 1, smallest - 1 - len(sizes[0][1]), -1):  # only the smallest fits: every token is forced
            said.append(grammar.only(left))
            grammar.take(said[-1])
        assert said == sizes[0][1] and grammar.layout.grid == (1,) * len(largest)


def test_no_more_codes_than_are_allowed_can_be_asked_for(omni: Transformer, tokenizer: Tokenizer) -> None:
    said, ids = set(), [tokenizer.encode("123x")[i] for i in range(3)]
    for frames in ids:
        for rows in ids:
            again = Grammar(omni.config, tokenizer, most=3)
            path = [tokenizer.special("film"), frames, *tokenizer.encode("x"), rows, *tokenizer.encode("x")]
            for place, token in enumerate(path):
                if place and again.masked(torch.zeros(tokenizer.vocab_size), 100)[token] != 0:
                    break
                again.take(token)
            else:
                last = again.masked(torch.zeros(tokenizer.vocab_size), 100).isfinite().nonzero()[:, 0].tolist()
                said |= {tokenizer.decode([*path[1:], columns]) for columns in last}
    assert said == {"1x1x1", "1x1x2", "1x2x1", "2x1x1", "3x1x1"}
    assert (
        not Grammar(omni.config, tokenizer, most=0)
        .masked(torch.zeros(tokenizer.vocab_size), 100)[tokenizer.special("draw")]
        .isfinite()
    )


def test_in_text_only_a_drawing_may_begin(omni: Transformer, tokenizer: Tokenizer) -> None:
    allowed = Grammar(omni.config, tokenizer).masked(torch.zeros(tokenizer.vocab_size), 100).isfinite()
    assert {i for i in range(tokenizer.vocab_size) if not allowed[i]} == {tokenizer.special(name) for name in NEVER}
    forbidden = Grammar(omni.config, tokenizer, begin=False).masked(torch.zeros(tokenizer.vocab_size), 100).isfinite()
    assert not forbidden[[tokenizer.special("draw"), tokenizer.special("film")]].any() and forbidden.sum() == allowed.sum() - 2
    silent = omni.config.but(media_out=None)
    assert torch.equal(Grammar(silent, tokenizer).masked(torch.zeros(tokenizer.vocab_size), 100).isfinite(), forbidden)
    words = silent.but(media_in=None)
    assert Grammar(words, tokenizer).masked(torch.zeros(tokenizer.vocab_size), 1).isfinite().all()


def test_a_prompt_may_end_in_a_drawing(omni: Transformer, tokenizer: Tokenizer) -> None:
    codes = torch.arange(10).view(2, 5)  # wider than the model may draw unasked
    whole = asked(tokenizer, "the cat")
    for stop in range(len(spans.draw_opening(tokenizer, 2, 5)), len(spans.drawing(codes, tokenizer))):
        prompt = spans.join([whole, spans.drawing(codes, tokenizer)]).cut(0, len(whole) + stop)
        pieces = list(generate(omni, prompt, Sampling(0, max_tokens=30), tokenizer))
        assert pieces[0].drawing == DrawingBegun((2, 5))
        finished = next(piece.drawing for piece in pieces if isinstance(piece.drawing, DrawingFinished))
        given = int((prompt.modality > 0).sum())
        assert finished.codes.flatten()[:given].tolist() == list(range(given)) and finished.codes.shape == (2, 5)
    closed = spans.join([whole, spans.drawing(codes, tokenizer)])
    assert not any(isinstance(p.drawing, DrawingBegun) for p in generate(omni, closed, Sampling(0, max_tokens=1), tokenizer))


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        ([("draw", "film"), "2x2", ("frame",)], "whose size is none"),
        ([("draw",), "2x", ("frame",)], "whose size is none"),
        ([("draw",), "0x2", ("frame",)], "whose size is none"),
        ([("draw",), "a"], "of no size that may be drawn"),
        ([("draw",), "99x99", ("frame",)], "9,801 codes, more than 4,096"),
        ([("draw",), "2x2", ("frame",), "cat"], "not laid out as one"),
        ([("film",), "9x9x9", ("frame",)], "takes 738 more tokens, and 50 are left"),
    ],
)
def test_a_prompt_that_ends_in_no_drawing_is_refused(omni: Transformer, tokenizer: Tokenizer, tail: list, said: str) -> None:
    ids = [id for part in tail for id in (tokenizer.encode(part) if isinstance(part, str) else map(tokenizer.special, part))]
    with pytest.raises(ConfigError, match=f"^[^\n]*{re.escape(said)}[^\n]*$"):
        generate(omni, [1, *ids], Sampling(0, max_tokens=50), tokenizer)
