"""Taking Engram or the indexers away, and everything as it was afterwards."""

import copy
from pathlib import Path

import pytest
import torch

import fourfold
from fourfold.evals.ablation import fresh_indexers, with_indexers, without_engram
from fourfold.model.engram import Engram
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from tests.builders import build, everything, random_tokens
from tests.compare import assert_close


@torch.inference_mode()
def test_zeroed_rows_are_as_no_engram_at_all() -> None:
    model, tokens = build(everything()), random_tokens(2, 30)
    before = model(tokens).logits
    bare = copy.deepcopy(model)
    for layer in bare.layers:
        layer.engram = None
    with without_engram(model):
        assert_close(model(tokens).logits, bare(tokens).logits)
        cache = model.new_cache(2)
        chunks = [model(tokens[:, part], cache=cache).logits for part in (slice(0, 11), slice(11, 30))]
        assert_close(torch.cat(chunks, 1), bare(tokens).logits)
    assert torch.equal(model(tokens).logits, before)
    assert (before - bare(tokens).logits).abs().max() > 0.1


@torch.inference_mode()
def test_tables_come_back_after_an_error_and_from_a_file(checkpoint: Path) -> None:
    resident, mapped = fourfold.load("tiny"), fourfold.load("tiny", mapped=True)
    tokens = torch.randint(32, 300, (1, 20))
    before = resident(tokens).logits
    seen = []
    for model in (resident, mapped):
        tables = [m.table for m in model.modules() if isinstance(m, Engram)]
        with pytest.raises(KeyboardInterrupt), without_engram(model):
            seen.append(model(tokens).logits)
            assert all(not m.table.all().any() for m in model.modules() if isinstance(m, Engram))
            raise KeyboardInterrupt
        assert all(m.table is table for m, table in zip((m for m in model.modules() if isinstance(m, Engram)), tables, strict=True))
        assert torch.equal(model(tokens).logits, before)
    assert torch.equal(*seen) and not torch.equal(seen[0], before)


@torch.inference_mode()
def test_other_indexers_change_scores_and_in_dense_mode_nothing_else() -> None:
    model, tokens = build(everything()), random_tokens(1, 40)
    own, other = Trace(attention_mass=True), Trace(attention_mass=True)
    logits = model(tokens, trace=own, selection="dense").logits
    fresh = fresh_indexers(model, seed=9)
    expected = Transformer(model.config, model.token_classes).init_weights(9)
    assert torch.equal(fresh[1].wk.weight, expected.layers[1].attention.indexer.wk.weight)
    with with_indexers(model, fresh):
        assert torch.equal(model(tokens, trace=other, selection="dense").logits, logits)
        assert not torch.equal(model(tokens).logits, logits)
    for a, b in zip(own.layers, other.layers, strict=True):
        assert torch.equal(a.attention_mass, b.attention_mass) and not torch.equal(a.index_scores, b.index_scores)
    again = Trace(attention_mass=True)
    model(tokens, trace=again, selection="dense")
    assert torch.equal(again.layers[0].index_scores, own.layers[0].index_scores)
