"""Drafts change no answer, right or wrong, for every kind of layer state, greedy and drawn; and they stop where they lose."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some

from fourfold.engine.engine import Engine
from fourfold.engine.pool import Seat, Seen
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.engine.speculate import TERM, TRIAL, Drafter, Trial
from fourfold.engine.store import PrefixStore
from fourfold.model.inputs import Batch
from fourfold.text.tokenizer import Tokenizer
from tests.engine.serving import alone, served, told, words

KINDS = ["latent", "compressed", "omni"]  # those with multi-token prediction


def requests() -> list[Request]:
    drawn = Sampling(0.8, top_k=3, seed=2, max_tokens=16)
    return [Request(words(n, n), (Sampling(0, seed=1, max_tokens=16), drawn)[n % 2]) for n in (1, 12, 30, 45)]


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=2)
@given(most=some.integers(1, 4), rights=some.lists(some.booleans(), min_size=1, max_size=9), chunk=some.sampled_from([7, 64]))
def test_drafts_right_and_wrong_change_nothing(tokenizer: Tokenizer, kind: str, most: int, rights: list[bool], chunk: int) -> None:
    """A drafter that knows the answers, and lies as it is told to; pages are stored on the way and used afterwards."""
    model, expected = served(kind, tokenizer), [alone(served(kind, tokenizer), request) for request in requests()]
    whole = [request.prompt + tokens for request, (tokens, *_) in zip(requests(), expected, strict=True)]
    turn = iter(range(10**6))

    def known(drafter: Drafter, seats: list[Seat]) -> None:
        for seat in seats:
            text = seat.whole().tokens.tolist()
            rest = next(line for line in whole if line[: len(text)] == text)[len(text) :][:most]
            seat.drafts, seat.seen = [t if rights[next(turn) % len(rights)] else (t + 1) % 50 for t in rest], None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drafter, "draft", known)
        store = PrefixStore("m", page=5)
        for _ in range(2):
            with Engine(model, drafts=most, chunk=chunk, store=store, threaded=False) as many:
                answers = many.generate(requests())
            assert [told(answer) for answer in answers] == expected
            stats = many.stats()
            assert stats.drafts_accepted == sum(answer.usage.accepted_drafts for answer in answers)
            assert stats.drafts_accepted > 0 or not rights[0]
            if all(rights):
                assert stats.drafts_accepted == stats.drafts_offered


@pytest.mark.parametrize("kind", KINDS)
def test_drafts_are_what_multi_token_prediction_says(tokenizer: Tokenizer, kind: str) -> None:
    """Fed bit by bit, the layer says what one forward over the whole sequence makes of it."""
    model, tokens = served(kind, tokenizer), words(20)
    batch = Batch.ragged([torch.tensor(tokens)])
    with torch.inference_mode():
        expected = model.logits(model.train_forward(batch).mtp_hidden[0]).argmax(-1).tolist()
        streams = model.streams(batch)
        drafter, seat = Drafter(model, 1), Seat(tokens[:6])
        for start, stop in ((0, 6), (6, 7), (7, 9), (9, 10)):
            seat.fresh = tokens[start:stop]
            seat.take()
            seat.fresh, seat.seen = [tokens[stop]], Seen(tokens[start:stop], start, streams[start:stop])
            drafter.draft([seat])
            assert seat.drafts == [expected[stop - 1]]


def test_further_drafts_leave_no_trace(tokenizer: Tokenizer) -> None:
    model, tokens = served("compressed", tokenizer), words(20)
    with torch.inference_mode():
        streams = model.streams(Batch.ragged([torch.tensor(tokens)]))
        said = []
        for most in (1, 3):
            drafter, seat, first = Drafter(model, most), Seat([]), []
            for place in range(5, 15):
                seat.fresh, seat.seen = [tokens[place + 1]], Seen([tokens[place]], place, streams[place : place + 1])
                drafter.draft([seat])
                first.append(seat.drafts[0])
                assert len(seat.drafts) == most
            said.append(first)
            drafter.leave(seat)
            assert not drafter.group.seats
    assert said[0] == said[1]


def test_a_drafter_that_breaks_is_done_without(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = served("latent", tokenizer)
    monkeypatch.setattr(model.mtp[0], "forward", lambda *_: 1 / 0)
    with Engine(model, threaded=False) as many:
        answers = many.generate(requests())
    assert [told(answer) for answer in answers] == [alone(model, request) for request in requests()]
    assert many.loop.drafter is None and many.stats().drafts_offered == 0


def test_drafts_are_never_made_where_none_are_asked_for(tokenizer: Tokenizer) -> None:
    for kind, drafts in (("latent", 0), ("llama", None), ("llama", 3)):
        with Engine(served(kind, tokenizer), drafts=drafts, threaded=False) as many:
            many.generate(requests()[:1])
        assert many.loop.drafter is None


@pytest.mark.parametrize("pays", [True, False])
def test_the_better_way_is_kept(pays: bool) -> None:
    trial = Trial()
    assert trial.drafts
    for _ in range(TRIAL):
        trial.note(8 if pays else 5, 1.2)
    assert not trial.drafts
    for _ in range(TRIAL):
        trial.note(5, 1.0)
    for _ in range(TERM):
        assert trial.drafts is pays
        trial.note(5, 1.0)
    assert trial.drafts  # and tried again
