"""batched = alone and reused = cold at once: arrivals, cancellations, preemptions and evictions in any order."""

from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from fourfold.engine.canvas import Drawing
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.engine.store import PrefixStore
from fourfold.engine.stream import Stream
from fourfold.media import spans
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests.engine.serving import KINDS, alone, served, words
from tests.omni import a_picture, a_sound, asked

MANY = settings(max_examples=150)
FEW = settings(max_examples=3)


@dataclass(frozen=True)
class Wish:
    """One request: how much of the common text it begins with, what follows, and when it comes and goes (steps, None: never)."""

    shared: int
    own: int
    most: int
    drawn: bool
    comes: int
    goes: int | None


wishes = some.builds(
    Wish,
    shared=some.integers(0, 60),
    own=some.integers(1, 20),
    most=some.integers(1, 14),
    drawn=some.booleans(),
    comes=some.integers(0, 25),
    goes=some.none() | some.integers(0, 12),
)
plans = some.lists(wishes, min_size=2, max_size=7)


@dataclass(frozen=True)
class Place:
    """How an engine is set up. room: tokens that its memory holds; kept: bytes of the store (None: there is none); apart: sequences
    of different lengths do not share a forward."""

    running: int
    chunk: int
    room: int | None
    kept: int | None
    page: int
    drafts: int
    apart: bool


places = some.builds(
    Place,
    running=some.integers(1, 5),
    chunk=some.sampled_from([3, 16, 64, 512]),
    room=some.none() | some.integers(40, 400),
    kept=some.none() | some.sampled_from([20_000, 100_000, 1 << 24]),
    page=some.integers(1, 24),
    drafts=some.integers(0, 2),
    apart=some.booleans(),
)

_alone: dict[tuple[object, ...], tuple[list[int], str, str | None, list[list[int]]]] = {}  # by kind and wish


def request_of(wish: Wish, kind: str, tokenizer: Tokenizer) -> Request:
    sampling = (
        Sampling(0.8, top_k=3, seed=wish.own, max_tokens=wish.most) if wish.drawn else Sampling(0, seed=1, max_tokens=wish.most)
    )
    common, own = words(60, 1)[: wish.shared], words(wish.own, wish.own)
    if kind != "omni":
        return Request(common + own, sampling)
    shown = (a_picture if wish.shared % 2 else a_sound)(tokenizer, wish.shared % 3)
    prompt = asked(tokenizer, *([shown] if wish.shared > 30 else []), tokenizer.decode(common + own))
    if not wish.drawn:
        return Request(prompt, sampling)
    opened = spans.join([prompt, spans.draw_opening(tokenizer, 2, 3)])
    return Request(opened, Sampling(1, top_k=3, seed=wish.own, max_tokens=7 + wish.most), Drawing(guidance=1.0 + wish.own % 2))


def known(model: Transformer, kind: str, wish: Wish) -> tuple[list[int], str, str | None, list[list[int]]]:
    key = kind, wish.shared, wish.own, wish.most, wish.drawn
    if key not in _alone:
        _alone[key] = alone(model, request_of(wish, kind, model.tokenizer))
    return _alone[key]


def played(model: Transformer, kind: str, plan: list[Wish], place: Place) -> None:
    cache = model.new_cache(1)
    memory = None if place.room is None else int(place.room * cache.bytes_per_token() + 2 * cache.fixed_bytes())
    store = None if place.kept is None else PrefixStore("m", memory=place.kept, page=place.page)
    many = Engine(
        model,
        most_running=place.running,
        chunk=place.chunk,
        memory=memory,
        store=store,
        drafts=place.drafts,
        threaded=False,
    )
    many.loop.pool.spare *= not place.apart
    streams: dict[int, Stream] = {}
    for step in range(26):
        for number, wish in enumerate(plan):
            if wish.comes == step:
                streams[number] = many.submit(request_of(wish, kind, model.tokenizer))
            if wish.goes is not None and number in streams and step == wish.comes + wish.goes:
                streams[number].cancel()
        many.step()
    while many.step():
        pass
    assert not many.loop.pool.seats and not many.loop.reader.queue and many.stats().state_bytes == 0
    for number, wish in enumerate(plan):
        pieces = list(streams[number])
        tokens, text, reason, drawn = known(model, kind, wish)
        mine = [token for piece in pieces for token in piece.tokens]
        if pieces[-1].finish_reason == "cancelled":
            assert mine == tokens[: len(mine)] and wish.goes is not None
            continue
        codes = [piece.drawing.codes.tolist() for piece in pieces if hasattr(piece.drawing, "pixels")]
        assert (mine, "".join(piece.text for piece in pieces), pieces[-1].finish_reason, codes) == (tokens, text, reason, drawn)


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(plan=plans, place=places)
def test_any_course_of_events(tokenizer: Tokenizer, kind: str, plan: list[Wish], place: Place) -> None:
    played(served(kind, tokenizer), kind, plan, place)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@MANY
@given(plan=plans, place=places)
def test_many_courses_of_events(tokenizer: Tokenizer, kind: str, plan: list[Wish], place: Place) -> None:
    played(served(kind, tokenizer), kind, plan, place)
