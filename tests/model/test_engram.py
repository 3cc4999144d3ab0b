"""Engram: hashes pinned to exact ids, mapped = resident to the bit, nothing crosses a document, ours = the released demo."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from fourfold.config import MemoryConfig
from fourfold.errors import ConfigError
from fourfold.model.engram import Engram, is_prime, multipliers, table_primes
from fourfold.model.inputs import Batch
from fourfold.model.transformer import Transformer
from fourfold.presets import preset
from fourfold.weights.stores import MappedStore
from tests.builders import CLASSES, ENGRAM, build, everything, grouped, random_tokens, token_classes
from tests.compare import assert_close

# For ENGRAM of tests/builders.py: table sizes, hash multipliers, and the rows that the tokens 3, 14, 15, 9, 26 fetch in layer 2
# (their classes 21, 24, 31, 26, 34). Computed once with Python's own integers; they may never change, or tables lose their meaning.
PRIMES = {0: [[101, 103, 107], [67, 71, 73]], 2: [[109, 113, 127], [79, 83, 89]]}
MULTIPLIERS = {
    0: [158782016632122625, 67252519774179075, 10213893376337785],
    2: [204899410554940199, 99353938358840951, 60653371053578351],
}
TOKENS = [3, 14, 15, 9, 26]
ROWS = [
    [79, 165, 333, 384, 448, 566],
    [38, 151, 326, 355, 441, 597],
    [24, 186, 253, 390, 503, 559],
    [56, 129, 235, 419, 461, 596],
    [71, 133, 227, 414, 482, 586],
]


@pytest.fixture(scope="module", params=[everything, grouped])
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(request.param())


def rows_of(model: Transformer, layer: int, batch: Batch) -> Tensor:
    """Table rows [S, L, heads] of a batch without a past."""
    context = model.context(batch, None, None, "sparse")
    return model.layers[layer].engram.row_ids(model.token_classes[context.history.tokens], context.queries, context)


def rows_by_hand(classes: list[int], memory: MemoryConfig, layer: int, vocabulary: int) -> list[list[int]]:
    """The published recipe in Python's unbounded integers: pad before the start, multiply, xor, modulo, offset."""
    primes, factors = plain_primes(memory)[layer], plain_multipliers(memory, layer, vocabulary)
    found = []
    for t in range(len(classes)):
        grams = [classes[t - k] if t >= k else memory.engram_pad_id for k in range(memory.max_ngram)]
        row, start = [], 0
        for order in range(2, memory.max_ngram + 1):
            mixed = 0
            for token, factor in zip(grams[:order], factors, strict=False):
                assert token * factor < 2**63, "no product may leave int64"
                mixed ^= token * factor
            for prime in primes[order - 2]:
                row.append(mixed % prime + start)
                start += prime
        found.append(row)
    return found


def plain_primes(memory: MemoryConfig) -> dict[int, list[list[int]]]:
    used: set[int] = set()
    found: dict[int, list[list[int]]] = {}
    for layer in memory.engram_layers:
        found[layer] = []
        for size in memory.engram_vocab_size:
            heads, n = [], size - 1
            while len(heads) < memory.engram_heads:
                n += 1
                if n > 1 and all(n % d for d in range(2, int(n**0.5) + 1)) and n not in used:
                    heads.append(n)
                    used.add(n)
            found[layer].append(heads)
    return found


def plain_multipliers(memory: MemoryConfig, layer: int, vocabulary: int) -> list[int]:
    half = max(1, ((2**63 - 1) // vocabulary) // 2)
    draws = np.random.default_rng(memory.engram_seed + 10007 * layer).integers(0, half, memory.max_ngram, dtype=np.int64)
    return [2 * int(draw) + 1 for draw in draws]


def test_golden_values() -> None:
    model = build(everything())
    assert table_primes(ENGRAM) == PRIMES
    assert {layer: multipliers(ENGRAM, layer, CLASSES) for layer in (0, 2)} == MULTIPLIERS
    assert rows_of(model, 2, Batch.from_tokens(torch.tensor([TOKENS])))[0].tolist() == ROWS


def test_rows_are_those_of_the_published_recipe(model: Transformer) -> None:
    memory, tokens = model.config.memory, random_tokens(2, 80)
    vocabulary = memory.engram_compressed_vocab_size or model.config.vocab_size
    for layer in memory.engram_layers:
        rows = rows_of(model, layer, Batch.from_tokens(tokens))
        for row, mine in zip(model.token_classes[tokens].tolist(), rows.tolist(), strict=True):
            assert mine == rows_by_hand(row, memory, layer, vocabulary)
        assert rows.max() < model.layers[layer].engram.table.shape[0]


@pytest.mark.parametrize("name", ["v4", "nano"])
def test_rows_at_full_size(name: str) -> None:
    """The largest classes and a large vocabulary: products come near 2^63."""
    config = preset(name).but(num_hidden_layers=16, hidden_size=8)
    config = config.but(memory=config.memory.but(engram_dim=8 * config.memory.engram_heads))
    memory = config.memory
    layer, classes = memory.engram_layers[-1], memory.engram_compressed_vocab_size or config.vocab_size
    primes = table_primes(memory)
    with torch.device("meta"):
        engram = Engram(config, layer, primes[layer])
    engram.head_sizes = torch.tensor([p for order in primes[layer] for p in order])
    engram.head_starts = engram.head_sizes.cumsum(0) - engram.head_sizes
    tokens = torch.tensor([[classes - 1, classes - 2, 0, 7, classes - 1, classes // 2] * 4])
    model = Transformer(preset("debug"))
    context = model.context(Batch.from_tokens(tokens), None, None, "sparse")
    assert primes == plain_primes(memory)
    assert engram.row_ids(tokens, context.queries, context)[0].tolist() == rows_by_hand(tokens[0].tolist(), memory, layer, classes)


def test_primes_are_prime_ascending_and_never_used_twice() -> None:
    for memory in (
        ENGRAM,
        preset("v4").memory,
        preset("nano").memory,
        ENGRAM.but(engram_layers=(1, 0), engram_vocab_size=(50, 50, 50)),
    ):
        primes = table_primes(memory)
        flat = [p for layer in primes.values() for order in layer for p in order]
        assert len(set(flat)) == len(flat)
        assert all(is_prime(p) for p in flat)
        for layer in primes.values():
            for size, order in zip(memory.engram_vocab_size, layer, strict=True):
                assert order == sorted(order)
                assert order[0] >= size
                assert len(order) == memory.engram_heads


def test_primality() -> None:
    sieve = [n for n in range(2, 3000) if all(n % d for d in range(2, int(n**0.5) + 1))]
    assert [n for n in range(-5, 3000) if is_prime(n)] == sieve
    assert is_prime(2**61 - 1)
    assert is_prime(27_800_009) is all(27_800_009 % d for d in range(2, 5300))
    for composite in (3215031751, 3825123056546413051, 318665857834031151167461, (2**31 - 1) * (2**61 - 1)):  # strong pseudoprimes
        assert not is_prime(composite)


def test_multipliers_are_odd_and_no_product_leaves_int64() -> None:
    for classes in (2, 37, 8192, 99092, 129280):
        for layer in (0, 1, 15):
            for multiplier in multipliers(ENGRAM, layer, classes):
                assert multiplier % 2 == 1
                assert multiplier * (classes - 1) < 2**63


def test_compression_is_used() -> None:
    """Tokens of one class fetch the same rows; without the map they would not."""
    model = build(everything())
    same = torch.arange(model.config.vocab_size)[model.token_classes == model.token_classes[2]]
    assert len(same) > 1
    batches = [Batch.from_tokens(torch.tensor([[4, int(token), 9]])) for token in same]
    first, *others = [rows_of(model, 0, batch) for batch in batches]
    assert all(torch.equal(first, other) for other in others)
    bare = Transformer(everything().but(**{"memory.engram_compressed_vocab_size": None})).eval()
    assert not torch.equal(*[rows_of(bare, 0, batch) for batch in batches[:2]])


def test_a_map_that_does_not_fit_is_refused() -> None:
    """Hashing with it would fetch other rows than were trained, and say nothing."""
    config = everything()
    with pytest.raises(ConfigError, match="token_classes reaches 60, outside engram_compressed_vocab_size"):
        Transformer(config)
    with pytest.raises(ConfigError, match="token_classes has 5 entries"):
        Transformer(config, torch.arange(5))


def test_mapped_is_resident_to_the_bit(model: Transformer, tmp_path: Path) -> None:
    tokens = random_tokens(2, 40)
    with torch.no_grad():
        expected = model(tokens).logits
    mapped = Transformer(model.config, token_classes(model.config)).eval()
    mapped.load_state_dict(model.state_dict())
    tables = {
        f"layers.{i}.engram.table.weight": model.layers[i].engram.table.weight.data for i in model.config.memory.engram_layers
    }
    save_file(tables, tmp_path / "model.safetensors")
    for layer in model.config.memory.engram_layers:
        mapped.layers[layer].engram.table = MappedStore(tmp_path / "model.safetensors", f"layers.{layer}.engram.table.weight")
    assert not [name for name, _ in mapped.named_parameters() if "table" in name]
    with torch.no_grad():
        assert torch.equal(mapped(tokens).logits, expected)
        caches = [m.new_cache(2) for m in (mapped, model)]
        for chunk in tokens.split([7, 1, 1, 20, 11], dim=1):
            assert torch.equal(mapped(chunk, cache=caches[0]).logits, model(chunk, cache=caches[1]).logits)


def test_it_changes_what_the_model_says(model: Transformer) -> None:
    """Without this the comparisons above could pass on a memory that is never read."""
    tokens = random_tokens(1, 40)
    with torch.no_grad():
        expected = model(tokens).logits
        silent = Transformer(model.config, token_classes(model.config)).eval()
        silent.load_state_dict(model.state_dict())
        for layer in model.config.memory.engram_layers:
            silent.layers[layer].engram.table.weight.zero_()
        assert (silent(tokens).logits - expected).abs().max() > 0.1


def with_picture(tokens: Tensor, picture: slice) -> Batch:
    batch = Batch.from_tokens(tokens)
    batch.modality.view_as(tokens)[:, picture] = 1
    return batch


def own_output(model: Transformer, layer: int, batch: Batch, streams: Tensor) -> Tensor:
    context = model.context(batch, None, None, "sparse")
    with torch.no_grad():
        return model.layers[layer].engram(streams, model.token_classes[context.history.tokens], context)


def test_silent_on_pictures_and_ngrams_stop_at_them(model: Transformer) -> None:
    tokens, picture = random_tokens(1, 40), slice(10, 20)
    layer = model.config.memory.engram_layers[-1]
    streams = torch.randn(40, model.layers[layer].engram.branches, model.config.hidden_size)
    batch = with_picture(tokens, picture)
    out = own_output(model, layer, batch, streams)
    assert (out[picture] == 0).all()
    assert (out[:10].abs().sum((1, 2)) > 0).all()
    assert (out[20:].abs().sum((1, 2)) > 0).all()
    rows, pad = rows_of(model, layer, batch)[0], model.config.memory.engram_pad_id
    after = model.token_classes[tokens[0, 20:]].tolist()  # behind the picture it is as at the start of a text
    classes = model.config.memory.engram_compressed_vocab_size or model.config.vocab_size
    assert rows[20:].tolist() == rows_by_hand(after, model.config.memory, layer, classes)
    assert rows[12].tolist() == rows_by_hand([pad] * 5, model.config.memory, layer, classes)[4]
    changed = tokens.clone()
    changed[:, picture] = (changed[:, picture] + 1) % model.config.vocab_size
    assert torch.equal(own_output(model, layer, with_picture(changed, picture), streams), out)


def test_pictures_through_a_cache(model: Transformer) -> None:
    batch = with_picture(random_tokens(1, 60), slice(13, 29))
    with torch.no_grad():
        expected, cache, out = model(batch).logits, model.new_cache(1), []
        for start, stop in ((0, 11), (11, 14), (14, 30), (30, 31), (31, 60)):
            fields = {name: getattr(batch, name)[..., start:stop] for name in ("tokens", "positions", "modality", "documents")}
            out.append(model(Batch(lengths=(stop - start,), **fields), cache=cache).logits)
    assert_close(torch.cat(out), expected)


def test_documents_do_not_leak(model: Transformer) -> None:
    """N-grams and convolution start afresh: rows and outputs behind a document's start do not depend on what came before."""
    tokens = random_tokens(1, 60)
    documents = (torch.arange(60) >= 25).long()[None]
    layer = model.config.memory.engram_layers[-1]
    streams = torch.randn(60, model.layers[layer].engram.branches, model.config.hidden_size)
    out = own_output(model, layer, Batch.from_tokens(tokens, documents), streams)
    alone = own_output(model, layer, Batch.from_tokens(tokens[:, 25:]), streams[25:])
    assert_close(out[25:], alone)
    joined = own_output(model, layer, Batch.from_tokens(tokens), streams)
    assert (joined[25:30] - alone[:5]).abs().max() > 1e-2


def test_forward_is_the_released_demo(model: Transformer) -> None:
    """Norms, gates and a dilated depthwise convolution by PyTorch's own modules, as in engram_demo_v1.py."""
    layer, tokens = model.config.memory.engram_layers[-1], random_tokens(2, 50)
    engram, memory = model.layers[layer].engram, model.config.memory
    batch, n, d = Batch.from_tokens(tokens), engram.branches, model.config.hidden_size
    streams = torch.randn(100, n, d)
    out = own_output(model, layer, batch, streams)
    with torch.no_grad():
        e = engram.table.weight[rows_of(model, layer, batch)].flatten(-2)  # [B, T, width]
        h = streams.view(2, 50, n, d)
        values = []
        for m in range(n):
            key = F.rms_norm(e @ engram.key_proj.weight[m * d : (m + 1) * d].T, (d,), engram.key_norm[m], engram.eps)
            query = F.rms_norm(h[:, :, m], (d,), engram.query_norm[m], engram.eps)
            gate = (key * query).sum(-1) / d**0.5
            gate = (gate.abs().clamp_min(1e-6).sqrt() * gate.sign()).sigmoid()
            values.append(gate[..., None] * (e @ engram.value_proj.weight.T))
        normed = torch.cat([F.rms_norm(v, (d,), engram.conv_norm[m], engram.eps) for m, v in enumerate(values)], -1)
        kernel = engram.conv.permute(1, 2, 0).reshape(n * d, 1, memory.engram_kernel_size)
        reach = (memory.engram_kernel_size - 1) * memory.max_ngram
        mixed = F.conv1d(normed.mT, kernel, padding=reach, dilation=memory.max_ngram, groups=n * d)[..., :50].mT
        expected = F.silu(mixed).view(2, 50, n, d) + torch.stack(values, 2)
    assert engram.reach == reach
    assert_close(out.view(2, 50, n, d), expected)
