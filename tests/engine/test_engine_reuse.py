"""reused = cold: prompts served from the prefix store, at every residue of its pages, for every kind of layer state."""

import pytest
import torch

from fourfold.engine.canvas import Drawing
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request, Usage
from fourfold.engine.sampler import Sampling
from fourfold.engine.sequence import shown
from fourfold.engine.store import PrefixStore
from fourfold.media import spans
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests.engine.serving import KINDS, alone, served, told, words
from tests.omni import a_clip, a_picture, asked

PAGE = 8
SHORT = Sampling(temperature=0, seed=1, max_tokens=3)


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Transformer:
    return served(request.param, tokenizer)


def asked_of(model: Transformer, store: PrefixStore, request: Request, chunk: int = 20) -> Usage:
    """The usage of a request whose answer is as it is alone."""
    with Engine(model, store=store, chunk=chunk, threaded=False) as many:
        answer = many.generate([request])[0]
    assert told(answer) == alone(model, request)
    return answer.usage


@pytest.mark.parametrize("residue", range(PAGE))
@pytest.mark.parametrize("kind", ["latent", "compressed", "llama"])
def test_a_beginning_is_reused_at_every_residue(tokenizer: Tokenizer, kind: str, residue: int) -> None:
    reused(served(kind, tokenizer), residue)


@pytest.mark.slow
@pytest.mark.parametrize("residue", range(PAGE))
@pytest.mark.parametrize("kind", ["grouped", "released", "omni"])
def test_and_of_every_other_kind(tokenizer: Tokenizer, kind: str, residue: int) -> None:
    reused(served(kind, tokenizer), residue)


def reused(model: Transformer, residue: int) -> None:
    """A prompt of five pages and a rest, then prompts that leave it at many places."""
    store, whole, other = PrefixStore("m", page=PAGE), words(5 * PAGE + residue), words(70, seed=9)
    assert asked_of(model, store, Request(whole, SHORT)).cached_tokens == 0
    for shared in (len(whole), 2 * PAGE + residue, 3 * PAGE - 1 - residue):
        prompt = whole[:shared] + other[: 1 + residue]
        common = next((i for i, (a, b) in enumerate(zip(whole, prompt, strict=False)) if a != b), min(len(whole), len(prompt)))
        usage = asked_of(model, store, Request(prompt, SHORT))
        assert usage.cached_tokens >= min(common, len(prompt) - 1) // PAGE * PAGE


def test_an_answer_is_a_beginning_too(model: Transformer) -> None:
    """What was generated is reused in the next turn, across pages that were filled token by token."""
    store, prompt = PrefixStore("m", page=PAGE), words(13)
    request = Request(prompt, Sampling(temperature=0, seed=1, max_tokens=2 * PAGE))
    said = alone(model, request)[0]
    asked_of(model, store, request)
    usage = asked_of(model, store, Request(prompt + said + words(4, 1), SHORT))
    assert usage.cached_tokens >= (len(prompt) + len(said) - 1) // PAGE * PAGE


def test_why_there_was_no_hit(tokenizer: Tokenizer) -> None:
    model, store, prompt = served("llama", tokenizer), PrefixStore("m", page=PAGE), words(20)
    reasons = [
        asked_of(model, store, request).miss_reason
        for request in (
            Request(prompt, SHORT),
            Request(prompt[: PAGE - 1], SHORT),
            Request(prompt[:PAGE] + words(20, 3), SHORT),
            Request(prompt, SHORT, namespace="another"),
            Request(prompt, SHORT, use_store=False),
            Request(prompt, SHORT),
        )
    ]
    assert reasons == ["cold", "too short", "new text", "cold", "off", None]


@pytest.mark.parametrize("kind", ["latent", "compressed", "llama"])
def test_preempted_answers_go_on_from_their_pages(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr("fourfold.engine.line.HEADROOM", 4)
    model, store = served(kind, tokenizer), PrefixStore("m", page=PAGE)
    cache = model.new_cache(1)
    room = int(2 * cache.fixed_bytes() + 75 * cache.bytes_per_token())
    asked_for = [Request(words(20, i), Sampling(0, max_tokens=25)) for i in range(3)]
    with Engine(model, store=store, memory=room, threaded=False) as many:
        answers = many.generate(asked_for)
    assert [told(answer) for answer in answers] == [alone(model, request) for request in asked_for]
    stats = many.stats()
    assert stats.preemptions > 0 and [answer.usage.cached_tokens for answer in answers] == [0, 0, 0]
    assert stats.tokens_in < 60 + stats.preemptions * (2 * PAGE)  # read again from the last page on


def test_no_page_ends_inside_a_picture(tokenizer: Tokenizer) -> None:
    model, store = served("omni", tokenizer), PrefixStore("m", page=PAGE)
    first = asked(tokenizer, "the cat", a_picture(tokenizer, 1, 24, 24), "sat", a_clip(tokenizer), "on the mat, said the dog")
    for extra in range(0, PAGE, 3):
        prompt = spans.join([spans.text(words(extra)), first]) if extra else first
        asked_of(model, store, Request(prompt, SHORT))
        usage = asked_of(model, store, Request(prompt, SHORT))
        assert usage.cached_tokens > len(prompt) - 3 * PAGE
        assert not any(start < usage.cached_tokens < stop for start, stop in shown(prompt.modality))


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_drawings_are_reused(tokenizer: Tokenizer, guidance: float) -> None:
    """Behind a prompt that was read before, and as part of the prompt of the next turn."""
    model, store = served("omni", tokenizer), PrefixStore("m", page=PAGE)
    prompt, drawing = asked(tokenizer, a_picture(tokenizer), "the cat sat on the mat"), Drawing(guidance=guidance)
    sampling = Sampling(1.0, top_k=3, seed=4, max_tokens=20)
    request = Request(spans.join([prompt, spans.draw_opening(tokenizer, 3, 4)]), sampling, drawing)
    codes = alone(model, request)[3][0]
    assert asked_of(model, store, request).cached_tokens == 0
    assert asked_of(model, store, request).cached_tokens > 0
    turn = spans.join([prompt, spans.drawing(torch.tensor(codes), tokenizer), spans.text(words(5))])
    usage = asked_of(model, store, Request(turn, sampling, drawing))
    assert usage.cached_tokens > len(prompt)
