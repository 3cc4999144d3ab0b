"""Text as it comes: chunked prefill, whole characters, stop strings, ends, and a cache that is used again."""

from collections.abc import Sequence as Listed

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from fourfold.engine.generate import Piece, generate
from fourfold.engine.sampler import Sampling
from fourfold.engine.sequence import Sequence
from fourfold.engine.stops import StopStrings
from fourfold.errors import ConfigError
from fourfold.model.inputs import Batch
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests.compare import assert_close, assert_same_tokens

texts = some.text("abc", max_size=30)


class Script(torch.nn.Module):
    """Stands in for a model: says given tokens one after another, whatever it is told."""

    def __init__(self, tiny: Transformer, said: Listed[int], limit: int = 10_000) -> None:
        super().__init__()
        self.config = tiny.config.but(max_position_embeddings=limit)
        self.said, self.place = list(said), torch.nn.Parameter(torch.zeros(()))
        self.new_cache, self.batch = tiny.new_cache, tiny.batch

    def trunk(self, batch: Batch, cache: object, selection: str) -> torch.Tensor:
        return torch.zeros(len(batch.tokens), 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        out = torch.zeros(1, self.config.vocab_size)
        out[0, self.said.pop(0)] = 1
        return out


def run(model: Transformer, prompt: list[int], tokenizer: Tokenizer, **settings: object) -> tuple[str, list[Piece]]:
    pieces = list(generate(model, prompt, Sampling(**{"temperature": 0, **settings}), tokenizer))
    assert all(piece.finish_reason is None for piece in pieces[:-1]) and pieces[-1].finish_reason
    return "".join(piece.text for piece in pieces), pieces


def before_first_stop(text: str, stops: Listed[str]) -> tuple[str, bool]:
    """What is left of a text: a stop string counts when it is the first to be complete (the longest of those)."""
    for end in range(1, len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return text[: min(starts)], True
    return text, False


@given(texts, some.lists(some.text("abc", min_size=1, max_size=5), max_size=4), some.lists(some.integers(0, 30)))
def test_stop_strings_do_not_depend_on_how_text_is_cut(text: str, stops: list[str], cuts: list[int]) -> None:
    watch, given_out, stopped = StopStrings(stops), "", False
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    for start, end in zip(borders, borders[1:], strict=False):
        free, stopped = watch.add(text[start:end])
        given_out += free
        if stopped:
            break
        # held back is the least that may still become a stop string
        held = text[len(given_out) : end]
        assert not held or any(stop.startswith(held) for stop in stops)
    assert (given_out + watch.flush(), stopped) == before_first_stop(text, stops)


@given(some.text(some.characters(codec="utf-8"), max_size=12), some.text("Grüße 🙂漢", min_size=1, max_size=3))
def test_text_comes_whole_and_stops_across_tokens(tiny: Transformer, tokenizer: Tokenizer, text: str, stop: str) -> None:
    said = tokenizer.encode(text + stop + " more")
    model = Script(tiny, said)
    out, pieces = run(model, [5], tokenizer, stop=[stop], max_tokens=1000)
    assert out == before_first_stop(text + stop + " more", [stop])[0]
    assert pieces[-1].finish_reason == "stop" and "\ufffd" not in "".join(piece.text for piece in pieces if "\ufffd" not in text)


def test_characters_are_given_only_whole(tiny: Transformer, tokenizer: Tokenizer) -> None:
    said = [token for byte in "a🙂é".encode() for token in [next(i for i in range(400) if tokenizer.bytes_of(i) == bytes([byte]))]]
    out, pieces = run(Script(tiny, said), [5], tokenizer, max_tokens=len(said))
    assert [piece.text for piece in pieces] == ["a", "", "", "", "🙂", "", "é"] and out == "a🙂é"
    out, _ = run(Script(tiny, said), [5], tokenizer, max_tokens=3)
    assert out == "a\ufffd"  # cut inside a character


@pytest.mark.parametrize("end", ["eos", "end"])
def test_end_tokens_end_an_answer(tiny: Transformer, tokenizer: Tokenizer, end: str) -> None:
    said = [*tokenizer.encode("the cat"), tokenizer.special(end), *tokenizer.encode("never")]
    out, pieces = run(Script(tiny, said), [5], tokenizer)
    assert out == "the cat" and pieces[-1].finish_reason == "stop"


def test_held_back_text_is_given_at_the_end(tiny: Transformer, tokenizer: Tokenizer) -> None:
    said = tokenizer.encode("the dog")
    out, pieces = run(Script(tiny, said), [5], tokenizer, stop="dogs", max_tokens=len(said))
    assert out == "the dog" and pieces[-1].finish_reason == "length"
    out, pieces = run(Script(tiny, [*said, tokenizer.special("end")]), [5], tokenizer, stop="dogs")
    assert out == "the dog" and pieces[-1].finish_reason == "stop"


def test_what_is_held_back_comes_before_a_control_token(tiny: Transformer, tokenizer: Tokenizer) -> None:
    """Else the end of a thought would be read as the beginning of the answer."""
    said = [*tokenizer.encode("the dog"), tokenizer.special("/think"), *tokenizer.encode("s ran")]
    out, pieces = run(Script(tiny, said), [5], tokenizer, stop="dogs", max_tokens=len(said))
    place = next(i for i, piece in enumerate(pieces) if tokenizer.special("/think") in piece.tokens)
    assert "".join(piece.text for piece in pieces[: place + 1]) == "the dog" and out == "the dogs ran"


def test_the_context_is_a_limit(tiny: Transformer, tokenizer: Tokenizer) -> None:
    limit = tiny.config.max_position_embeddings
    _, pieces = run(tiny, [40] * (limit - 4), tokenizer, max_tokens=None)
    assert len(pieces) <= 4 and pieces[-1].finish_reason in ("length", "stop")
    with pytest.raises(ConfigError, match=f"^prompt: {limit} tokens leave no room in the context of {limit}; shorten it$"):
        generate(tiny, [40] * limit, Sampling(), tokenizer)
    with pytest.raises(ConfigError, match="^prompt: empty"):
        generate(tiny, [], Sampling(), tokenizer)


@torch.no_grad()
@pytest.mark.parametrize("chunk", [1, 2, 7, 16, 31, 64])
def test_chunked_prefill_is_unchunked(tiny: Transformer, chunk: int) -> None:
    prompt = torch.randint(32, tiny.config.vocab_size, (64,)).tolist()
    plain = tiny(torch.tensor([prompt])).logits[0, -1]
    sequence = Sequence(tiny)
    assert_close(sequence.feed(prompt, chunk), plain, f"chunks of {chunk}")
    assert sequence.seen == prompt and sequence.cache.lengths == [64]


@torch.no_grad()
def test_cached_decoding_is_plain(tiny: Transformer, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("the cat sat on the mat")
    _, pieces = run(tiny, prompt, tokenizer, max_tokens=24)
    tokens = [token for piece in pieces for token in piece.tokens]
    logits = tiny(torch.tensor([prompt + tokens])).logits[0, len(prompt) - 1 : -1]
    assert_same_tokens(tokens, logits.argmax(-1).tolist(), logits)


def test_the_same_seed_gives_the_same_text(tiny: Transformer, tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("the dog")
    drawn = [run(tiny, prompt, tokenizer, temperature=1.5, seed=seed, max_tokens=20)[0] for seed in (4, 4, 5)]
    assert drawn[0] == drawn[1] != drawn[2]


@torch.no_grad()
@given(some.lists(some.lists(some.integers(32, 40), min_size=1, max_size=20), min_size=2, max_size=4))
def test_a_sequence_used_again_is_as_good_as_new(tiny: Transformer, prompts: list[list[int]]) -> None:
    sequence = Sequence(tiny)
    for prompt in prompts:
        rest = sequence.rewind(prompt)
        assert len(rest) and prompt[len(prompt) - len(rest) :] == rest.tokens.tolist()
        logits = sequence.feed(rest)
        assert sequence.seen == prompt
    assert_close(logits, Sequence(tiny).feed(prompts[-1]), "reused")


@torch.no_grad()
def test_a_forward_that_fails_can_be_repeated(tiny: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = torch.randint(32, 300, (20,)).tolist()
    sequence = Sequence(tiny)
    sequence.feed(prompt[:8])
    with monkeypatch.context() as patch:
        patch.setattr(tiny.layers[1], "forward", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            sequence.feed(prompt[8:])
    assert_close(sequence.feed(sequence.rewind(prompt)), tiny(torch.tensor([prompt])).logits[0, -1], "after an interruption")
