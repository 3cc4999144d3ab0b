"""cached = plain: chunks of any size, ragged batches, and a cache that was cut, copied, or rebuilt from pages."""

import itertools
import random

import pytest
import torch
from torch import Tensor

from fourfold.model.inputs import Batch
from fourfold.model.state import Cache
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from tests.builders import CONFIGS, INDEXER, base, build, grouped, random_tokens
from tests.compare import assert_close, assert_same_greedy, assert_same_selection

LENGTH = 96  # more than ten times the keys an indexer chooses, so that reading by mask (up to 35 keys) and by gathering both come
SIZES = range(1, 71)


def tied() -> object:
    """One index head: half of all scores are exactly zero, and many of those are the best."""
    return base(selection=INDEXER.but(index_n_heads=1))


@pytest.fixture(scope="module", params=[*CONFIGS, "tied"])
def model(request: pytest.FixtureRequest) -> Transformer:
    return build((CONFIGS | {"tied": tied})[request.param]())


@pytest.fixture(scope="module")
def plain(model: Transformer) -> tuple[Tensor, Tensor, Trace]:
    """Tokens [1, LENGTH], and the logits and trace of one full pass, which covers every shorter length too."""
    tokens, trace = random_tokens(1, LENGTH), Trace()
    with torch.no_grad():
        return tokens, model(tokens, trace=trace).logits, trace


@torch.no_grad()
def in_chunks(model: Transformer, tokens: Tensor, sizes: list[int], cache: Cache) -> tuple[Tensor, list[Trace]]:
    """Logits [B, T, V] of tokens fed in chunks of the sizes given, and the trace of each."""
    logits, traces = [], []
    for chunk in tokens.split(sizes, dim=1):
        traces.append(Trace())
        logits.append(model(chunk, cache=cache, trace=traces[-1]).logits)
    return torch.cat(logits, dim=1), traces


def assert_same_choices(traces: list[Trace], sizes: list[int], whole: Trace, what: str) -> None:
    """Every chunk chose the same keys and the same experts as the full pass."""
    for start, size, trace in zip(itertools.accumulate([0, *sizes[:-1]]), sizes, traces, strict=True):
        for mine, full in zip(trace.layers, whole.layers, strict=True):
            part = slice(start, start + size)
            if full.expert_ids is not None:
                assert_same_selection(mine.expert_ids, full.expert_ids[part], f"{what}: experts from {start}")
            if full.index_mask is not None:
                mask = full.index_mask[:, part, : start + size]
                everything = torch.ones_like(mask).tril(start)  # where nothing had to be chosen, nothing is traced
                chosen = everything if mine.index_mask is None else mine.index_mask
                assert_same_selection(chosen, mask, f"{what}: keys from {start}")


@pytest.mark.parametrize("rest", range(7))
def test_chunks_of_every_size(model: Transformer, plain: tuple[Tensor, Tensor, Trace], rest: int) -> None:
    tokens, expected, whole = plain
    for size in [size for size in SIZES if size % 7 == rest]:
        sizes = [size] * (LENGTH // size) + ([LENGTH % size] if LENGTH % size else [])
        cache = model.new_cache(1)
        logits, traces = in_chunks(model, tokens, sizes, cache)
        assert cache.lengths == [LENGTH]
        assert_same_greedy(logits, expected, f"chunks of {size}")
        assert_same_choices(traces, sizes, whole, f"chunks of {size}")


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2, 5, 16, 31, 64])
def test_chunks_of_every_size_from_every_start(model: Transformer, plain: tuple[Tensor, Tensor, Trace], size: int) -> None:
    tokens, expected, whole = plain
    for start in range(1, 71):
        rest = LENGTH - start
        sizes = [start] + [size] * (rest // size) + ([rest % size] if rest % size else [])
        logits, traces = in_chunks(model, tokens, sizes, model.new_cache(1))
        assert_same_greedy(logits, expected, f"{start}, then chunks of {size}")
        assert_same_choices(traces, sizes, whole, f"{start}, then chunks of {size}")


@torch.no_grad()
def run_ragged(model: Transformer, rows: list[Tensor], sizes: list[list[int]], cache: Cache) -> list[Tensor]:
    """Feed row s in chunks of sizes[s] (0 is allowed), all rows together in one ragged batch a step; logits of each row."""
    fed, out = [0] * len(rows), [[] for _ in rows]
    for step in zip(*sizes, strict=True):
        chunks = [row[at : at + size] for row, at, size in zip(rows, fed, step, strict=True)]
        logits = model(Batch.ragged(chunks, past=cache.lengths), cache=cache).logits
        for place, part in enumerate(logits.split(list(step))):
            out[place].append(part)
        fed = [at + size for at, size in zip(fed, step, strict=True)]
    return [torch.cat(parts) for parts in out]


def join_and_leave(model: Transformer) -> None:
    """Sequences come into one cache, go on together, and leave it, the first one first; each says what it says alone."""
    rows = [random_tokens(length + 12, seed=length) for length in (3, 50, 17, 1)]
    caches = [model.new_cache(1) for _ in rows]
    for row, own in zip(rows, caches, strict=True):
        run_ragged(model, [row[:-12]], [[len(row) - 12]], own)
    cache = caches[0]
    for own in caches[1:]:
        cache.join(own)
    there, said = [0, 1, 2, 3], [[] for _ in rows]
    for step in range(12):
        if step in (4, 7, 9):
            cache.leave(0)
            there = [there[-1], *there[1:-1]]
        fed = [rows[i][len(rows[i]) - 12 + step :][:1] for i in there]
        for i, logits in zip(there, run_ragged(model, fed, [[1]] * len(there), cache), strict=True):
            said[i].append(logits)
    for row, parts in zip(rows, said, strict=True):
        expected = plain_logits(model, row)[len(row) - 12 :][: len(parts)]
        assert_same_greedy(torch.cat(parts), expected, f"{len(row)} tokens, in company for {len(parts)}")


def plain_logits(model: Transformer, row: Tensor) -> Tensor:
    with torch.no_grad():
        return model(row[None]).logits[0]


def test_sequences_join_and_leave(model: Transformer) -> None:
    join_and_leave(model)


def random_sizes(length: int, steps: int, rng: random.Random) -> list[int]:
    cuts = sorted(rng.randint(0, length) for _ in range(steps - 1))
    return [stop - start for start, stop in zip([0, *cuts], [*cuts, length], strict=True)]


@pytest.mark.parametrize("seed", range(4))
def test_ragged_batches_equal_each_sequence_alone(model: Transformer, seed: int) -> None:
    rng = random.Random(seed)
    lengths = rng.sample([3, 11, 40, 70, LENGTH], 4)
    rows = [random_tokens(length, seed=10 * seed + i) for i, length in enumerate(lengths)]
    cache = model.new_cache(4)
    for length, row, logits in zip(
        lengths, rows, run_ragged(model, rows, [random_sizes(n, 6, rng) for n in lengths], cache), strict=True
    ):
        with torch.no_grad():
            assert_same_greedy(logits, model(row[None]).logits[0], f"{length} of {lengths}")
    assert cache.lengths == lengths


def test_ragged_batch_without_a_cache(model: Transformer) -> None:
    rows = [random_tokens(length, seed=length) for length in (1, 50, 13, 37)]
    with torch.no_grad():
        logits = model(Batch.ragged(rows)).logits.split([len(row) for row in rows])
        for row, mine in zip(rows, logits, strict=True):
            assert_same_greedy(mine, model(row[None]).logits[0], f"length {len(row)}")


def test_decoding_beside_prefill(model: Transformer) -> None:
    """One sequence gets single tokens while another gets long chunks and a third waits."""
    rows = [random_tokens(60, seed=1), random_tokens(90, seed=2), random_tokens(45, seed=3)]
    sizes = [[55, 1, 1, 1, 1, 1], [0, 30, 0, 30, 1, 29], [40, 0, 0, 5, 0, 0]]
    for row, mine in zip(rows, run_ragged(model, rows, sizes, model.new_cache(3)), strict=True):
        with torch.no_grad():
            assert_same_greedy(mine, model(row[None]).logits[0])


def test_truncated_at_every_length_and_gone_on_otherwise(model: Transformer) -> None:
    tokens, other = random_tokens(1, LENGTH), random_tokens(1, LENGTH, seed=5)
    full = model.new_cache(1)
    in_chunks(model, tokens, [LENGTH], full)
    for length in [0, 1, 2, 8, 9, 10, 35, 36, 37, *range(11, LENGTH, 9)]:
        cache = full.fork()
        cache.truncate(length)
        new = torch.cat([tokens[:, :length], other[:, length : length + 12]], dim=1)
        logits, _ = in_chunks(model, new[:, length:], [1, new.shape[1] - length - 1], cache)
        with torch.no_grad():
            assert_same_greedy(logits, model(new).logits[:, length:], f"truncated to {length}")


def test_truncated_again_and_again(model: Transformer) -> None:
    """As speculation does: a few tokens ahead, some of them taken back."""
    tokens, cache = random_tokens(1, LENGTH), model.new_cache(1)
    with torch.no_grad():
        expected = model(tokens).logits
        for length in range(0, LENGTH - 6, 3):
            wrong = (tokens[:, length + 2 : length + 6] + 1) % model.config.vocab_size
            ahead = torch.cat([tokens[:, length : length + 2], wrong], dim=1)
            model(ahead, cache=cache)
            cache.truncate(length + 2)
            logits = model(tokens[:, length + 2 : length + 3], cache=cache).logits
            assert_same_greedy(logits, expected[:, length + 2 : length + 3], f"after {length}")


def test_ragged_truncation(model: Transformer) -> None:
    rows, kept = [random_tokens(80, seed=s) for s in range(3)], [13, 80, 41]
    cache = model.new_cache(3)
    run_ragged(model, rows, [[80]] * 3, cache)
    cache.truncate(kept)
    assert cache.lengths == kept
    ends = [random_tokens(9 + s, seed=20 + s) for s in range(3)]
    logits = run_ragged(model, ends, [[2, len(end) - 2] for end in ends], cache)
    for row, length, end, mine in zip(rows, kept, ends, logits, strict=True):
        with torch.no_grad():
            assert_same_greedy(mine, model(torch.cat([row[:length], end])[None]).logits[0, length:])


def test_cutting_more_than_there_is_raises(model: Transformer) -> None:
    cache = model.new_cache(2)
    run_ragged(model, [random_tokens(5), random_tokens(9)], [[5], [9]], cache)
    for wrong in (6, -1, [5, 10]):
        with pytest.raises(ValueError, match="cannot be cut"):
            cache.truncate(wrong)
    assert cache.lengths == [5, 9]


@pytest.mark.parametrize("length", [1, 12, 36, 64])
def test_forks_diverge_and_leave_each_other_alone(model: Transformer, length: int) -> None:
    rows = [random_tokens(length, seed=s) for s in (1, 2)]
    cache = model.new_cache(2)
    run_ragged(model, rows, [[length]] * 2, cache)
    fork = cache.fork([1, 0, 1])
    ends = [random_tokens(20, seed=30 + s) for s in range(5)]
    parts = [[], [], [], [], []]
    for half in (slice(0, 10), slice(10, 20)):  # the two in turn
        mine = run_ragged(model, [end[half] for end in ends[:2]], [[10]] * 2, cache)
        forked = run_ragged(model, [end[half] for end in ends[2:]], [[10]] * 3, fork)
        for known, new in zip(parts, [*mine, *forked], strict=True):
            known.append(new)
    starts = [rows[0], rows[1], rows[1], rows[0], rows[1]]
    for start, end, logits in zip(starts, ends, map(torch.cat, parts), strict=True):
        with torch.no_grad():
            assert_same_greedy(logits, model(torch.cat([start, end])[None]).logits[0, length:])


@pytest.mark.parametrize("page", [1, 5, 16, 50, 64])
def test_pages_rebuild_an_equal_cache(model: Transformer, page: int) -> None:
    rows = [random_tokens(63, seed=1), random_tokens(50, seed=2)]
    cache = model.new_cache(2)
    run_ragged(model, rows, [[63], [50]], cache)
    rebuilt = model.new_cache(3)  # another batch, another place
    for sequence, place, length in ((0, 2, 63), (1, 0, 50)):
        for start in range(0, length, page):
            rebuilt.restore(place, cache.snapshot(sequence, start, min(start + page, length)))
    assert rebuilt.lengths == [50, 0, 63]
    for old, new in zip(cache.states(), rebuilt.states(), strict=True):
        for name in old._buffers:
            assert torch.equal(old.read(name)[0, :63], new.read(name)[2, :63])
            assert torch.equal(old.read(name)[1, :50], new.read(name)[0, :50])
    ends = [random_tokens(7, seed=8), random_tokens(7, seed=9), random_tokens(7, seed=10)]
    logits = run_ragged(model, ends, [[3, 4]] * 3, rebuilt)
    for start, end, mine in zip([rows[1], rows[0][:0], rows[0]], ends, logits, strict=True):
        with torch.no_grad():
            assert_same_greedy(mine, model(torch.cat([start, end])[None]).logits[0, len(start) :])


def test_a_page_beyond_the_end_raises(model: Transformer) -> None:
    cache = model.new_cache(1)
    in_chunks(model, random_tokens(1, 5), [5], cache)
    with pytest.raises(ValueError, match="holds 5 tokens"):
        cache.snapshot(0, 3, 6)


def test_a_forward_that_broke_off_can_be_taken_back(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between two layers leaves some states longer than others; cutting to the old length makes the cache whole."""
    tokens, cache = random_tokens(1, 30), model.new_cache(1)
    in_chunks(model, tokens[:, :20], [20], cache)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model.layers[1], "forward", interrupted)
        in_chunks(model, tokens[:, 20:], [10], cache)
    cache.truncate(20)
    logits, _ = in_chunks(model, tokens[:, 20:], [10], cache)
    with torch.no_grad():
        assert_same_greedy(logits, model(tokens).logits[:, 20:])


@pytest.mark.parametrize("batch", [random_tokens(3, 4), random_tokens(1, 4), Batch.ragged([random_tokens(2)] * 3)])
def test_the_batch_must_fit_the_cache(model: Transformer, batch: Tensor | Batch) -> None:
    with pytest.raises(ValueError, match="the cache holds 2 sequences, the batch [13]"):
        model(batch, cache=model.new_cache(2))


def test_no_tokens_at_all_raise_and_leave_the_cache_as_it_was(model: Transformer) -> None:
    cache = model.new_cache(1)
    in_chunks(model, random_tokens(1, 5), [5], cache)
    with pytest.raises(ValueError, match="no tokens"):
        model(random_tokens(1, 0), cache=cache)
    assert cache.lengths == [5]


def test_bytes_per_token_are_what_the_buffers_take(model: Transformer) -> None:
    attention, selection, memory = model.config.attention, model.config.selection, model.config.memory
    inner = 2 * attention.key_value_heads * attention.head_dim if not attention.is_latent else 0
    inner = inner or attention.kv_lora_rank + attention.qk_rope_head_dim
    values = 3 * (inner + (selection.index_head_dim if selection else 0))
    streams = model.config.streams.hc_mult if model.config.streams else 1
    gates = len(memory.engram_layers) * streams if memory else 0
    assert model.new_cache(1).bytes_per_token() == 4 * (values + gates) + 8 + 8 + 1  # and token, document, modality


@torch.no_grad()
def test_greedy_decoding_gives_the_tokens_of_full_passes() -> None:
    model = build(grouped())
    tokens, cache = random_tokens(2, 30), model.new_cache(2)
    new = tokens
    for _ in range(20):
        tokens = torch.cat([tokens, model(new, cache=cache).logits[:, -1:].argmax(-1)], dim=1)
        new = tokens[:, -1:]
    expected = model(tokens).logits
    assert_close(expected[:, -1], model(tokens[:, -1:], cache=cache).logits[:, 0])
    assert torch.equal(expected[:, 29:-1].argmax(-1), tokens[:, 30:])
