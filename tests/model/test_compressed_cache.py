"""Compressed attention: cached = batched = packed = plain, and what its memory costs.

The layer state forgets raw rows, so chunks, cuts, copies and pages are tried at every residue of the blocks, at lengths where it
has forgotten and where it has not.
"""

import itertools
import random

import pytest
import torch
from torch import Tensor

from fourfold.model import block_state
from fourfold.model.block_state import BlockState
from fourfold.model.inputs import Batch
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from tests.builders import build, random_tokens
from tests.compare import assert_close, assert_same_greedy, assert_same_selection
from tests.model.compressing import CONFIGS, DOCUMENTS, LENGTH, plain, released, small
from tests.model.test_cache import in_chunks, join_and_leave, random_sizes, run_ragged

LONG = 300  # more than two of the released long blocks


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(CONFIGS[request.param]())


@pytest.fixture(autouse=True)
def little_slack(monkeypatch: pytest.MonkeyPatch) -> None:
    """States forget soon, so that short sequences show it."""
    monkeypatch.setattr(block_state, "SLACK", 6)


def assert_chunks_are_plain(model: Transformer, tokens: Tensor, sizes: list[int], expected: Tensor, whole: Trace) -> None:
    cache = model.new_cache(1)
    logits, traces = in_chunks(model, tokens, sizes, cache)
    what = f"chunks {sizes[:3]}"
    assert_same_greedy(logits, expected, what)
    for start, size, trace in zip(itertools.accumulate([0, *sizes[:-1]]), sizes, traces, strict=True):
        for mine, full in zip(trace.layers, whole.layers, strict=True):
            if mine.index_mask is not None:
                blocks = mine.index_mask.shape[-1]
                assert_same_selection(mine.index_mask, full.index_mask[:, start : start + size, :blocks], what)


@pytest.mark.parametrize("rest", range(4))
def test_chunks_of_every_size(model: Transformer, rest: int) -> None:
    tokens, whole = random_tokens(1, LENGTH), Trace()
    with torch.no_grad():
        expected = model(tokens, trace=whole).logits
    for size in range(1 + rest, 71, 4):
        sizes = [size] * (LENGTH // size) + ([LENGTH % size] if LENGTH % size else [])
        assert_chunks_are_plain(model, tokens, sizes, expected, whole)


@pytest.mark.parametrize(
    "sizes",
    [[127, 127, 46], [128, 128, 44], [129, 129, 42], [126, 1, 1, 1, 171], [255, 1, 1, 43], [3, 4, 5, 244, 44], [90] * 3 + [30]],
)
def test_long_chunks_around_the_long_blocks(sizes: list[int]) -> None:
    model, tokens, whole = build(released()), random_tokens(1, LONG), Trace()
    with torch.no_grad():
        expected = model(tokens, trace=whole).logits
    assert_chunks_are_plain(model, tokens, sizes, expected, whole)


@pytest.mark.slow
@pytest.mark.parametrize("start", [*range(1, 9), 31, 64, 100, 125, 126, 127, 128, 129, 130, 191, 254, 255, 256, 257])
def test_chunks_of_every_size_from_every_residue(start: int) -> None:
    model, tokens, whole = build(released()), random_tokens(1, LONG), Trace()
    with torch.no_grad():
        expected = model(tokens, trace=whole).logits
    for size in [*range(1 + start % 3, 71, 3), 127, 128, 129]:
        rest = LONG - start
        sizes = [start] + [size] * (rest // size) + ([rest % size] if rest % size else [])
        assert_chunks_are_plain(model, tokens, sizes, expected, whole)


@pytest.mark.parametrize("seed", range(3))
def test_ragged_batches_equal_each_sequence_alone(model: Transformer, seed: int) -> None:
    rng = random.Random(seed)
    lengths = rng.sample([2, 11, 40, 70, LENGTH], 4)
    rows, cache = [random_tokens(n, seed=10 * seed + i) for i, n in enumerate(lengths)], model.new_cache(4)
    for row, logits in zip(rows, run_ragged(model, rows, [random_sizes(n, 6, rng) for n in lengths], cache), strict=True):
        assert_same_greedy(logits, plain(model, row[None])[0], f"{len(row)} of {lengths}")


def test_sequences_join_and_leave(model: Transformer) -> None:
    join_and_leave(model)


def test_ragged_batch_without_a_cache(model: Transformer) -> None:
    rows = [random_tokens(length, seed=length) for length in (1, 50, 13, 37)]
    with torch.no_grad():
        logits = model(Batch.ragged(rows)).logits.split([len(row) for row in rows])
    for row, mine in zip(rows, logits, strict=True):
        assert_same_greedy(mine, plain(model, row[None])[0], f"length {len(row)}")


def test_packed_documents_are_each_alone(model: Transformer) -> None:
    tokens, whole = random_tokens(3, LENGTH), Batch.from_tokens(random_tokens(3, LENGTH), DOCUMENTS)
    with torch.no_grad():
        out = model.train_forward(whole)
    depths = [y.unflatten(0, tokens.shape) for y in [out.hidden, *out.mtp_hidden]]
    for row, document in {(r, int(d)) for r in range(3) for d in DOCUMENTS[r]}:
        own = DOCUMENTS[row] == document
        with torch.no_grad():
            single = model.train_forward(Batch.from_tokens(tokens[row, own][None]))
        for depth, (mine, expected) in enumerate(zip(depths, [single.hidden, *single.mtp_hidden], strict=True)):
            known = max(int(own.sum()) - depth, 0)
            assert_close(mine[row, own][:known], expected[:known], f"document {document} at depth {depth}")


def test_packed_documents_through_a_cache(model: Transformer) -> None:
    tokens, cache, out = random_tokens(3, LENGTH), model.new_cache(3), []
    whole = Batch.from_tokens(tokens, DOCUMENTS)
    with torch.no_grad():
        expected = model(whole).logits.unflatten(0, tokens.shape)
        for start, stop in ((0, 36), (36, 38), (38, 39), (39, 77), (77, 96)):
            out.append(model(part_of(whole, start, stop), cache=cache).logits.unflatten(0, (3, stop - start)))
        assert_same_greedy(torch.cat(out, dim=1), expected)
        cache.truncate(60)  # deep enough that the last documents are computed again
        assert_same_greedy(model(part_of(whole, 60, 96), cache=cache).logits.unflatten(0, (3, 36)), expected[:, 60:])


def part_of(whole: Batch, start: int, stop: int) -> Batch:
    grid = torch.arange(3 * LENGTH).view(3, LENGTH)[:, start:stop].flatten()
    fields = {name: getattr(whole, name)[..., grid] for name in ("tokens", "positions", "modality", "documents")}
    return Batch(lengths=(stop - start,) * 3, **fields)


@pytest.mark.parametrize("cut", [0, 1, 2, 3, 4, 7, 12, 13, 14, 28, 41, 60, 77, *range(83, 97)])
def test_truncated_at_any_length(model: Transformer, cut: int) -> None:
    tokens, other = random_tokens(1, LENGTH), random_tokens(1, LENGTH, seed=5)
    cache = model.new_cache(1)
    in_chunks(model, tokens, [LENGTH - 30, 29, 1], cache)
    cache.truncate(cut)
    assert cache.lengths == [cut]
    new = torch.cat([tokens[:, :cut], other[:, cut : cut + 20]], dim=1)
    if new.shape[1] > cut:
        rest = new.shape[1] - cut
        logits, _ = in_chunks(model, new[:, cut:], [1, rest - 1] if rest > 1 else [1], cache)
        assert_same_greedy(logits, plain(model, new)[:, cut:], f"truncated to {cut}")
        assert cache.lengths == [new.shape[1]]


def test_a_short_cut_computes_nothing_again(model: Transformer) -> None:
    cache = model.new_cache(1)
    in_chunks(model, random_tokens(1, LENGTH), [LENGTH], cache)
    for length in range(LENGTH - 1, LENGTH - 7, -1):
        cache.truncate(length)
        assert cache.rewind() == []


def test_a_deep_cut_is_given_again_in_pieces(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.model.state.PIECE", 16)
    tokens, cache = random_tokens(1, LENGTH), model.new_cache(1)
    in_chunks(model, tokens, [LENGTH - 1, 1], cache)  # a chunk is forgotten when the next one comes
    cache.truncate(44)
    again = cache.fork().rewind()
    assert [piece.lengths for piece in again] == [(16,), (16,), (12,)]
    assert torch.equal(torch.cat([piece.tokens for piece in again]), tokens[0, :44])
    logits, _ = in_chunks(model, tokens[:, 44:], [LENGTH - 44], cache)
    assert_same_greedy(logits, plain(model, tokens)[:, 44:])


def test_ragged_cuts_shallow_and_deep(model: Transformer) -> None:
    rows, kept = [random_tokens(80, seed=s) for s in range(4)], [13, 80, 78, 0]
    cache = model.new_cache(4)
    run_ragged(model, rows, [[50, 30]] * 4, cache)
    cache.truncate(kept)
    ends = [random_tokens(9 + s, seed=20 + s) for s in range(4)]
    logits = run_ragged(model, ends, [[2, len(end) - 2] for end in ends], cache)
    for row, length, end, mine in zip(rows, kept, ends, logits, strict=True):
        assert_same_greedy(mine, plain(model, torch.cat([row[:length], end])[None])[0, length:])


@pytest.mark.parametrize("length", [1, 12, 64])
def test_forks_diverge_and_leave_each_other_alone(model: Transformer, length: int) -> None:
    rows, cache = [random_tokens(length, seed=s) for s in (1, 2)], model.new_cache(2)
    run_ragged(model, rows, [[length]] * 2, cache)
    fork = cache.fork([1, 0, 1])
    ends, parts = [random_tokens(20, seed=30 + s) for s in range(5)], [[] for _ in range(5)]
    for half in (slice(0, 10), slice(10, 20)):  # the two in turn
        mine = run_ragged(model, [end[half] for end in ends[:2]], [[10]] * 2, cache)
        forked = run_ragged(model, [end[half] for end in ends[2:]], [[10]] * 3, fork)
        for known, new in zip(parts, [*mine, *forked], strict=True):
            known.append(new)
    for start, end, logits in zip([rows[0], rows[1], rows[1], rows[0], rows[1]], ends, map(torch.cat, parts), strict=True):
        assert_same_greedy(logits, plain(model, torch.cat([start, end])[None])[0, length:])


@pytest.mark.parametrize("page", [1, 5, 16, 64])
@pytest.mark.parametrize("when", ["at once", "late"])
def test_pages_rebuild_an_equal_cache(model: Transformer, page: int, when: str) -> None:
    """Pages taken as soon as they are full hold every row; taken late, the old ones hold blocks only."""
    row, cache, pages = random_tokens(90, seed=1), model.new_cache(2), []
    for start in range(0, 90, page):
        stop = min(start + page, 90)
        run_ragged(model, [row[start:stop], row[:0]], [[stop - start], [0]], cache)
        pages += [cache.snapshot(0, start, stop)] if when == "at once" else []
    if when == "late":
        pages = [cache.snapshot(0, start, min(start + page, 90)) for start in range(0, 90, page)]
    for count in {len(pages), len(pages) // 2 + 1}:
        rebuilt, length = model.new_cache(3), min(count * page, 90)
        for piece in pages[:count]:
            rebuilt.restore(2, piece)
        assert rebuilt.lengths == [0, 0, length]
        ends = [random_tokens(7, seed=8 + s) for s in range(3)]
        logits = run_ragged(model, ends, [[3, 4]] * 3, rebuilt)
        for start, end, mine in zip([row[:0], row[:0], row[:length]], ends, logits, strict=True):
            assert_same_greedy(mine, plain(model, torch.cat([start, end])[None])[0, len(start) :])


def test_a_forward_that_broke_off_can_be_taken_back(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, cache = random_tokens(1, 60), model.new_cache(1)
    in_chunks(model, tokens[:, :20], [20], cache)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(model.layers[1], "forward", interrupted)
        in_chunks(model, tokens[:, 20:], [40], cache)
    cache.truncate(20)
    logits, _ = in_chunks(model, tokens[:, 20:], [40], cache)
    assert_same_greedy(logits, plain(model, tokens)[:, 20:])


def test_computing_again_may_be_broken_off_too(model: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, cache = random_tokens(1, 60), model.new_cache(1)
    in_chunks(model, tokens, [59, 1], cache)
    cache.truncate(31)
    for layer in (2, 1):

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(model.layers[layer], "forward", interrupted)
            in_chunks(model, tokens[:, 31:], [29], cache)
        assert cache.lengths == [31]
        cache.truncate(31)
    logits, _ = in_chunks(model, tokens[:, 31:], [29], cache)
    assert_same_greedy(logits, plain(model, tokens)[:, 31:])


def test_wrong_cuts_and_pages_raise(model: Transformer) -> None:
    cache = model.new_cache(2)
    run_ragged(model, [random_tokens(5), random_tokens(9)], [[5], [9]], cache)
    for state in (cache, cache.layers[0]["attention"]):
        for wrong in ([6, 9], [-1, 0]):
            with pytest.raises(ValueError, match="cannot be cut"):
                state.truncate(wrong)
    with pytest.raises(ValueError, match="holds 5 tokens"):
        cache.layers[0]["attention"].snapshot(0, 3, 6)
    assert cache.lengths == [5, 9]


def buffered(state: BlockState) -> tuple[int, int]:
    """Bytes of rows of tokens, and of blocks."""
    size = lambda rows: sum(rows.read(name).nbytes for name in rows._buffers)  # noqa: E731
    return sum(size(group.rows) for group in state.recent), size(state.blocks)


def test_memory_grows_by_blocks_only() -> None:
    model = build(small())
    cache, sizes = model.new_cache(1), []
    for _ in range(5):
        in_chunks(model, random_tokens(1, 84), [64] + [1] * 20, cache)
        sizes.append([buffered(layer["attention"]) for layer in cache.layers])
    for layer, states in enumerate(zip(*sizes, strict=True)):
        state = cache.layers[layer]["attention"]
        recent = [tokens for tokens, _ in states]
        assert max(recent) <= state.fixed_bytes() * 2
        grown = states[-1][1] - states[0][1]
        assert grown == 4 * 84 * state.bytes_per_token()
    entry = 4 * 14 + 8  # an fp32 vector and the place of its end
    expected = [entry / 7, (entry + 4 * 10) / 3, 0.0]
    assert [layer["attention"].bytes_per_token() for layer in cache.layers] == expected
    assert cache.bytes_per_token() == sum(expected) + 8 + 8 + 1
