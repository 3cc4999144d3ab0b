"""The engine: batched = alone, whoever comes, goes, gives up its place or fails; streams from threads and event loops."""

import asyncio
import threading
from collections.abc import Callable

import pytest
import torch

from fourfold.engine.canvas import Drawing
from fourfold.engine.engine import Engine
from fourfold.engine.request import EngineBusy, Request
from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError, FourfoldError
from fourfold.media import spans
from fourfold.model.inputs import Batch
from fourfold.model.transformer import Transformer
from fourfold.text.chats.events import DrawingCodes
from fourfold.text.tokenizer import Tokenizer
from tests.compare import assert_close
from tests.engine.serving import GREEDY, KINDS, alone, plain_logits, served, told, words
from tests.omni import a_clip, a_picture, a_sound, asked

LENGTHS = (1, 60, 9, 33, 2, 20)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Transformer:
    return served(request.param, tokenizer)


@pytest.fixture
def llama(tokenizer: Tokenizer) -> Transformer:
    return served("llama", tokenizer)


def engine(model: Transformer, **settings: object) -> Engine:
    return Engine(model, threaded=False, **settings)


def requests() -> list[Request]:
    """Greedy and drawn, ending at different times."""
    drawn = Sampling(0.8, top_k=3, seed=5, max_tokens=9)
    return [Request(words(length, i), (GREEDY, drawn)[i % 2]) for i, length in enumerate(LENGTHS)]


def drawings(tokenizer: Tokenizer) -> list[Request]:
    """Prompts that show something, prompts that open a drawing, with and without guidance, and plain text."""
    end = Sampling(1.0, top_k=4, seed=3, max_tokens=30)
    opened = spans.join([asked(tokenizer, a_picture(tokenizer), "the cat"), spans.draw_opening(tokenizer, 3, 4)])
    film = spans.join([asked(tokenizer, "the dog"), spans.film_opening(tokenizer, 2, 1, 2)])
    return [
        Request(opened, end, Drawing(guidance=2.0)),
        Request(asked(tokenizer, a_sound(tokenizer), "sat"), end),
        Request(film, end, Drawing(guidance=1.0)),
        Request(asked(tokenizer, a_clip(tokenizer)), GREEDY),
        Request(film, end, Drawing(guidance=1.5)),
        Request(tokenizer.encode("the mat"), end, Drawing(begin=False)),
    ]


def test_batched_is_alone(model: Transformer) -> None:
    with engine(model, most_running=4, chunk=25) as many:
        answers = many.generate(requests())
    for answer, request in zip(answers, requests(), strict=True):
        assert told(answer) == alone(model, request)
        assert answer.usage.prompt_tokens == len(request.prompt) and answer.usage.completion_tokens == len(answer.tokens)
        assert answer.usage.miss_reason == "off" and answer.usage.first_token_seconds >= answer.usage.queued_seconds


def test_drawings_among_texts_are_drawings_alone(tokenizer: Tokenizer) -> None:
    omni = served("omni", tokenizer)
    with engine(omni, chunk=16) as many:
        answers = many.generate(drawings(tokenizer))
        assert not many.loop.pool.seats and many.stats().state_bytes == 0
    for answer, request in zip(answers, drawings(tokenizer), strict=True):
        assert told(answer) == alone(omni, request)
    assert [len(answer.drawings) for answer in answers] == [1, 1, 1, 0, 1, 0]  # the second begins one by itself


def test_drawings_stream_beside_text(tokenizer: Tokenizer) -> None:
    omni = served("omni", tokenizer)
    many = engine(omni)
    drawn, text = (many.submit(request) for request in drawings(tokenizer)[:2])
    for _ in range(6):
        many.step()
    codes = [piece for piece in drawn._items if isinstance(piece.drawing, DrawingCodes)]
    assert len(codes) >= 4 and len(text._items) >= 5
    many.close(drain=False)


@pytest.mark.parametrize("kind", ["latent", "compressed", "llama"])
def test_preempted_answers_are_the_same(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Memory for two of the answers, at first; the newer gives up its place and is read again."""
    monkeypatch.setattr("fourfold.engine.line.HEADROOM", 4)
    model, cache = served(kind, tokenizer), served(kind, tokenizer).new_cache(1)
    room = int(2 * cache.fixed_bytes() + 75 * cache.bytes_per_token())
    asked_for = [Request(words(20, i), Sampling(0, max_tokens=25)) for i in range(3)]
    with engine(model, memory=room) as many:
        streams = [many.submit(request) for request in asked_for]
        while many.step():
            grown = many.stats().running * 2 * cache.bytes_per_token()  # in this step, drafts that stood included
            assert many.stats().state_bytes <= room + grown or many.stats().running == 1
    for stream, request in zip(streams, asked_for, strict=True):
        assert told(stream.answer()) == alone(model, request)
    assert many.stats().preemptions > 0


@pytest.mark.parametrize("steps", [0, 1, 6])
def test_cancelling_ends_one_answer_at_once(llama: Transformer, steps: int) -> None:
    many = engine(llama, chunk=8)
    streams = [many.submit(request) for request in requests()]
    for _ in range(steps):
        many.step()
    streams[1].cancel()
    streams[1].cancel()
    many.step()
    pieces = list(streams[1])
    whole = alone(llama, requests()[1])[0]
    assert pieces[-1].finish_reason == "cancelled" and [t for piece in pieces for t in piece.tokens] == whole[: len(pieces) - 1]
    while many.step():
        pass
    for i in (0, 2, 3, 4, 5):
        assert told(streams[i].answer()) == alone(llama, requests()[i])
    assert not many.loop.pool.seats


def test_short_answers_do_not_pay_for_long_ones(llama: Transformer) -> None:
    """Where padding costs more than a forward, sequences of other lengths are kept apart."""
    asked_for = [Request(words(length, length), GREEDY) for length in (60, 5, 5)]
    for spare, groups in ((0, [1, 2]), (1 << 30, [3])):
        many = engine(llama)
        many.loop.pool.spare = spare
        streams = [many.submit(request) for request in asked_for]
        for _ in range(3):
            many.step()
        assert sorted(len(group.seats) for group in many.loop.pool.groups) == groups
        assert [told(stream.answer()) for stream in streams] == [alone(llama, request) for request in asked_for]


def poison(model: Transformer, monkeypatch: pytest.MonkeyPatch, fails: Callable[[Batch], bool]) -> None:
    """Let forwards over some batches fail halfway: their inputs are noted, and one layer has run."""
    streams = model.streams

    def halfway(batch: Batch, *more: object) -> torch.Tensor:
        if not fails(batch):
            return streams(batch, *more)
        with monkeypatch.context() as patch:
            patch.setattr(model.layers[1], "forward", lambda *_: (_ for _ in ()).throw(RuntimeError("broken\nline")))
            return streams(batch, *more)

    monkeypatch.setattr(model, "streams", halfway)


@pytest.mark.parametrize("kind, place", [("latent", "in the answer"), ("compressed", "in the answer"), ("llama", "in the prompt")])
def test_a_failure_of_one_does_not_touch_others(tokenizer: Tokenizer, monkeypatch, kind: str, place: str) -> None:
    """A forward that fails halfway on one request's token, among others' in the same forward."""
    model = served(kind, tokenizer)
    expected = [alone(model, request) for request in requests()]
    asked_for, said = requests(), {token for tokens, *_ in expected for token in tokens}
    bad = next(token for token in range(120, 300) if token not in said)
    if place == "in the prompt":
        asked_for[2] = Request([*words(8, 2), bad], GREEDY)
    else:
        asked_for[2] = Request(words(9, 2), Sampling(0, logit_bias={bad: 100}, max_tokens=5))
    poison(model, monkeypatch, lambda batch: bool((batch.tokens == bad).any()))
    many = engine(model, drafts=0)
    streams = [many.submit(request) for request in asked_for]
    while many.step():
        pass
    with pytest.raises(FourfoldError, match="^engine: RuntimeError: broken$"):
        streams[2].answer()
    for i in (0, 1, 3, 4, 5):
        assert told(streams[i].answer()) == expected[i]
    assert not many.loop.pool.seats and not many.loop.running


def test_a_failure_that_passes_is_not_seen(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    model = served("compressed", tokenizer)
    expected = [alone(model, request) for request in requests()]
    calls = iter(range(1000))
    poison(model, monkeypatch, lambda batch: batch.sequences > 1 and next(calls) in (2, 4))
    assert [told(answer) for answer in engine(model).generate(requests())] == expected


def test_forwards_that_always_fail_together_end_the_newest(llama: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(llama, monkeypatch, lambda batch: batch.sequences > 1)
    many = engine(llama)
    first, second = (many.submit(request) for request in requests()[:2])
    while many.step():
        pass
    assert first.answer().finish_reason in ("stop", "length")
    with pytest.raises(FourfoldError, match="broken"):
        second.answer()


def test_log_probabilities_are_the_models_own(model: Transformer) -> None:
    prompt = words(21, 4)
    with engine(model, chunk=8) as many:
        answer = many.generate([Request(prompt, Sampling(0.5, top_k=2, seed=1, max_tokens=6), logprobs=3, prompt_logprobs=2)])[0]
    plain = plain_logits(model, prompt + answer.tokens)[:-1].log_softmax(-1)
    known = [*answer.prompt_logprobs, *answer.logprobs]
    assert [chosen.token for chosen in known] == prompt + answer.tokens and known[0].logprob is None
    own = plain.gather(-1, torch.tensor(prompt + answer.tokens)[1:, None])[:, 0]
    assert_close(torch.tensor([chosen.logprob for chosen in known[1:]]), own, "log-probabilities")
    assert [len(chosen.top) for chosen in known] == [0, *[2] * 20, *[3] * len(answer.tokens)]
    assert_close(torch.tensor([chosen.top[0][1] for chosen in known[1:]]), plain.max(-1).values, "the likeliest")


def test_what_cannot_be_is_refused_at_once(llama: Transformer) -> None:
    many, limit = engine(llama), llama.config.max_position_embeddings
    for prompt, message in (
        ([], "^prompt: empty"),
        ([40] * limit, "leave no room in the context"),
        ([llama.config.vocab_size], "^prompt: holds ids that are no tokens; they go from 0 to"),
        ([-1], "^prompt: holds ids that are no tokens"),
    ):
        with pytest.raises(ConfigError, match=message):
            many.submit(Request(prompt))
    assert not many.step()


def test_a_full_queue_says_when_to_come_again(llama: Transformer) -> None:
    many = engine(llama, most_running=1, most_waiting=2)
    streams = [many.submit(Request([41], GREEDY)) for _ in range(2)]
    with pytest.raises(EngineBusy) as busy:
        many.submit(Request([41], GREEDY))
    assert busy.value.retry_after >= 1
    many.step()
    streams.append(many.submit(Request([41], GREEDY)))
    assert many.stats().running == 1 and many.stats().waiting == 2
    assert len({tuple(stream.answer().tokens) for stream in streams}) == 1


def test_a_thread_serves_threads_and_event_loops(tokenizer: Tokenizer) -> None:
    model = served("compressed", tokenizer)
    expected = [alone(model, request) for request in requests()]
    found: dict[int, object] = {}

    async def follow(stream):
        return [token async for piece in stream for token in piece.tokens]

    async def several(many: Engine):
        return await asyncio.gather(*(follow(many.submit(request)) for request in requests()))

    with Engine(model, most_running=4) as many:
        threads = [
            threading.Thread(target=lambda i=i, r=r: found.update({i: told(many.submit(r).answer())}))
            for i, r in enumerate(requests())
        ]
        for thread in threads:
            thread.start()
        assert asyncio.run(several(many)) == [tokens for tokens, *_ in expected]
        for thread in threads:
            thread.join()
    assert [found[i] for i in range(len(expected))] == expected
    assert not many._thread.is_alive()


@pytest.mark.parametrize("drain", [True, False])
def test_closing_ends_every_answer(llama: Transformer, drain: bool) -> None:
    many = Engine(llama, most_running=2)
    streams = [many.submit(Request(words(30, i), Sampling(0, max_tokens=40))) for i in range(4)]
    many.close(drain)
    reasons = {stream.answer().finish_reason for stream in streams}
    assert reasons <= ({"stop", "length"} if drain else {"stop", "length", "cancelled"})
    with pytest.raises(FourfoldError, match="^engine: is closed"):
        many.submit(requests()[0])


def test_a_reader_who_left_his_event_loop_stops_nobody(llama: Transformer) -> None:
    with Engine(llama) as many:

        async def leave() -> None:
            async for _ in many.submit(Request(words(5), Sampling(0, max_tokens=200))):
                return

        asyncio.run(leave())
        assert told(many.submit(requests()[0]).answer()) == alone(llama, requests()[0])


def test_nothing_that_a_writer_gets_wrong_hangs(llama: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits that are no numbers end their own request; an engine that breaks tells everybody."""
    with Engine(llama) as many:
        monkeypatch.setattr("fourfold.engine.chooser.sample", lambda *_: 1 / 0)
        with pytest.raises(FourfoldError, match="^engine: ZeroDivisionError"):
            many.submit(requests()[0]).answer()
        monkeypatch.undo()
        monkeypatch.setattr(many.loop, "_take_in", lambda: 1 / 0)
        with pytest.raises(FourfoldError, match="^engine: ZeroDivisionError"):
            many.submit(requests()[0]).answer()
        monkeypatch.undo()
        assert told(many.submit(requests()[0]).answer()) == alone(llama, requests()[0])
