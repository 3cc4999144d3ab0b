"""Reused = cold: prompts that begin with pages of the prefix store, against the same prompts computed, for every kind of state."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from torch import Tensor

import fourfold
from fourfold.config import ModelConfig
from fourfold.engine.sequence import Prompt, Sequence, contents, span_of
from fourfold.engine.store import PrefixStore
from fourfold.engine.store.digest import model_digest
from fourfold.formats.ours import save
from fourfold.model.transformer import Transformer
from tests.builders import build, everything, grouped, multi_head, random_tokens, wide_latent
from tests.compare import assert_close, assert_same_greedy
from tests.model import compressing
from tests.omni import a_picture, a_sound, asked

LENGTH = 136  # of which the released ratios make a block of 128
CONFIGS: dict[str, Callable[[], ModelConfig]] = {
    "MLA+DSA": everything,
    "grouped-query": grouped,
    "CSA/HCA, short blocks": compressing.small,
    "CSA/HCA, released ratios": compressing.released,
}


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(CONFIGS[request.param]())


def new_store(folder: Path | None, page: int) -> PrefixStore:
    return PrefixStore("a model", memory=0 if folder else 1 << 30, folder=folder, page=page)


def resumed(model: Transformer, store: PrefixStore, prompt: Prompt) -> Sequence:
    """A sequence that has read as much of a prompt as the store has."""
    sequence, seen = Sequence(model), contents(span_of(prompt))
    hit = store.fetch("", seen, len(seen) - 1)
    for page in hit.pages:
        sequence.cache.restore(0, page)
    sequence.seen = seen[: hit.tokens]
    return sequence


def read(sequence: Sequence, store: PrefixStore, prompt: Prompt, chunk: int = 1000) -> Tensor:
    """The logits [t, V] of what a sequence has not read of a prompt, in chunks that keep a page whenever one is full."""
    model, rest = sequence.model, sequence.rewind(prompt)
    whole, new, parts, at = model.batch([rest]), contents(rest), [], 0
    while at < len(new):
        stop = min(at + chunk, at + store.page - len(sequence) % store.page, len(new))
        with torch.inference_mode():
            parts.append(model(whole.cut(at, stop), cache=sequence.cache).logits)
        sequence.seen += new[at:stop]
        if len(sequence) % store.page == 0:
            start = len(sequence) - store.page
            store.keep("", sequence.seen, start, [sequence.cache.snapshot(0, start, len(sequence))])
        at = stop
    return torch.cat(parts)


def plain(model: Transformer, prompt: Prompt) -> Tensor:
    with torch.inference_mode():
        return model(model.batch([span_of(prompt)])).logits


def filled(model: Transformer, row: list[int], page: int, folder: Path | None) -> PrefixStore:
    """A store with the pages of a row; with a folder they are on disk alone."""
    store = new_store(folder, page)
    read(Sequence(model), store, row)
    store.close()
    return new_store(folder, page) if folder else store


@pytest.mark.parametrize(("tier", "page"), [("memory", 5), ("disk", 8)])
def test_every_number_of_pages_resumes(model: Transformer, tier: str, page: int, tmp_path: Path) -> None:
    """Pages end at all residues of the ratios 3, 4 and 7, prompts at all of the page: one pass has the logits of every length."""
    row = random_tokens(LENGTH, seed=3).tolist()
    store, expected = filled(model, row, page, tmp_path if tier == "disk" else None), plain(model, row)
    for pages in range(LENGTH // page):
        start, stop = pages * page, min((pages + 2) * page, LENGTH)
        for length in range(start + 1, start + page + 1):
            assert store.fetch("", row[:length], length - 1).tokens == start
        sequence = resumed(model, store, row[: start + 1])
        with torch.inference_mode():
            logits = model(torch.tensor([row[start:stop]]), cache=sequence.cache).logits[0]
        assert_same_greedy(logits, expected[start:stop], f"after {pages} pages")


@pytest.mark.slow
@pytest.mark.parametrize(("tier", "page"), [*(("memory", page) for page in (1, 2, 3, 7, 16, 64)), ("disk", 5), ("disk", 8)])
def test_every_length_resumes(model: Transformer, tier: str, page: int, tmp_path: Path) -> None:
    row = random_tokens(LENGTH, seed=3).tolist()
    store, expected = filled(model, row, page, tmp_path if tier == "disk" else None), plain(model, row)
    for length in range(1, LENGTH + 1):
        sequence = resumed(model, store, row[:length])
        start = len(sequence)
        assert start == (length - 1) // page * page
        assert_same_greedy(read(sequence, store, row[:length]), expected[start:length], f"{start} of {length} tokens reused")


@pytest.mark.parametrize("page", [6, pytest.param(4, marks=pytest.mark.slow)])
def test_prompts_that_part_ways(model: Transformer, page: int, tmp_path: Path) -> None:
    """Each goes on from what those before it left, in chunks of its own."""
    row, store = random_tokens(70, seed=1).tolist(), new_store(tmp_path, page)
    for cut, chunk in ((70, 1000), (40, 3), (23, 7), (42, 1000)):
        other = [*row[:cut], *((token + 1) % 61 for token in row[cut:])]
        sequence = resumed(model, store, other)
        start = len(sequence)
        assert start == (0 if cut == 70 else cut // page * page)
        assert_same_greedy(read(sequence, store, other, chunk), plain(model, other)[start:], f"parts at {cut}")
        store.close()


@settings(max_examples=3)
@given(data=some.data())
def test_random_prompts_with_eviction(model: Transformer, data: some.DataObject) -> None:
    """Prompts of few words share beginnings at random; the memory holds some of their pages only."""
    page = data.draw(some.sampled_from([4, 5, 7]))
    cache = model.new_cache(1)
    with torch.inference_mode():
        model(torch.ones(1, page, dtype=torch.long), cache=cache)
    budget = sum(map(len, cache.snapshot(0, 0, page))) * 6
    store = PrefixStore("a model", memory=budget, page=page)
    for _ in range(4):
        words = data.draw(some.lists(some.integers(0, 1), min_size=1, max_size=6))
        row = [token for word in words for token in range(word, 21, 4)]
        sequence, chunk = resumed(model, store, row), data.draw(some.integers(3, 20))
        start = len(sequence)
        assert_same_greedy(read(sequence, store, row, chunk), plain(model, row)[start:], f"{start} of {len(row)} reused")
        assert store.stats().memory_bytes <= budget


def test_pages_taken_late_are_right_too(model: Transformer) -> None:
    """As when a sequence was preempted: layers that compress have forgotten the old rows then, and are given the tokens again."""
    row = random_tokens(LENGTH, seed=4).tolist()
    store, sequence = new_store(None, 8), Sequence(model)
    sequence.feed(row)
    store.keep("", sequence.seen, 0, [sequence.cache.snapshot(0, start, start + 8) for start in range(0, LENGTH - 7, 8)])
    for length in (9, 50, 135):
        again = resumed(model, store, row[:length])
        start = len(again)
        assert start == (length - 1) // 8 * 8
        assert_same_greedy(read(again, store, row[:length]), plain(model, row)[start:length], f"{length} tokens")


@pytest.mark.parametrize("page", [2, 5])
def test_prompts_with_pictures_and_sound(omni: Transformer, tokenizer, page: int, tmp_path: Path) -> None:
    """A page that ends inside a picture is given back, since a tower looks at the whole of it; another picture shares nothing."""
    first = asked(tokenizer, a_picture(tokenizer, 1), "the cat sat", a_sound(tokenizer), "on the mat")
    other = asked(tokenizer, a_picture(tokenizer, 2), "the cat sat", a_sound(tokenizer), "on the mat")
    store = new_store(tmp_path, page)
    read(Sequence(omni), store, first)
    store.close()
    for prompt in (first, *(first.cut(0, length) for length in range(len(first) - 9, len(first), 2)), other):
        sequence = resumed(omni, store, prompt)
        assert (len(sequence) <= 4) == (prompt is other)
        rest = len(sequence.rewind(prompt))
        assert_close(read(sequence, store, prompt), plain(omni, prompt)[len(prompt) - rest :], f"{rest} of {len(prompt)} computed")
        store.close()


def test_a_digest_tells_models_apart(tmp_path: Path) -> None:
    one = build(everything())
    digests = {"": model_digest(one)}
    assert digests[""] == model_digest(build(everything()))
    for name, parameter in list(one.named_parameters())[::9]:
        with torch.no_grad():
            old = parameter.flatten()[-1].item()
            parameter.view(-1)[-1] = old + 1e-3
            digests[name] = model_digest(one)
            parameter.view(-1)[-1] = old
    assert model_digest(one) == digests[""]
    digests["theta"] = model_digest(build(everything().but(rms_norm_eps=1e-5)))
    digests["classes"] = model_digest(build(everything(), seed=1).double())
    for other in (grouped, multi_head, wide_latent):
        digests[other.__name__] = model_digest(build(other()))
    assert len(set(digests.values())) == len(digests) > 10


def test_a_digest_survives_saving_and_knows_tables_left_on_disk(tmp_path: Path) -> None:
    folder = save(build(everything()), tmp_path / "model")
    digest = model_digest(fourfold.load(folder))
    assert digest == model_digest(build(everything()))
    mapped = model_digest(fourfold.load(folder, mapped=True))
    assert mapped == model_digest(fourfold.load(folder, mapped=True)) != digest
    (folder / "model.safetensors").touch()
    assert mapped != model_digest(fourfold.load(folder, mapped=True))
