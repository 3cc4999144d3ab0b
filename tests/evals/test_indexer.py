"""Captured mass: by hand on a small trace, and by its bounds on a model."""

import pytest
import torch

from fourfold.data.corpus import Corpus
from fourfold.errors import ConfigError, DataError
from fourfold.evals.ablation import fresh_indexers
from fourfold.evals.indexer import WAYS, capture, captured, indexer, long_rows, loss_gap
from fourfold.model.trace import LayerTrace
from fourfold.model.transformer import Transformer
from tests.builders import INDEXER, build, everything, multi_head, random_tokens
from tests.model.compressing import small


def test_captured_mass_by_hand() -> None:
    """Four queries, top 2: only the last two see more keys than that."""
    mass = torch.tensor([[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0.2, 0.3, 0.5, 0], [0.4, 0.1, 0.2, 0.3]])[None]
    scores = torch.tensor([[9.0, 9, 9, 9], [9, 9, 9, 9], [0, 2, 1, 9], [0, 0, 0, -1]])[None]
    mask = torch.ones(4, 4, dtype=torch.bool).tril()[None]
    layer = LayerTrace(index_scores=scores, index_mask=mask, attention_mass=mass)
    other = LayerTrace(index_scores=mass, index_mask=mask, attention_mass=mass)
    # query 2 takes keys 1 and 2 (a key it cannot see scores highest), query 3 the newer two of three zeros
    expected = [(0.8 + 0.3) / 2, (0.8 + 0.7) / 2, (0.8 + 0.5) / 2, (0.8 + 0.7) / 2, 4 / 7]
    assert list(captured(layer, other, 2)) == pytest.approx(expected)


def test_the_oracle_is_the_upper_bound_and_all_is_one() -> None:
    model, row = build(everything()), random_tokens(60)
    found = capture(model, row, fresh_indexers(model), topk=9)
    assert found.shape == (3, len(WAYS) + 1)
    oracle = found[:, WAYS.index("oracle")]
    assert (found[:, : len(WAYS)] <= oracle[:, None] + 1e-6).all() and (oracle < 1).all() and (found >= 0).all()
    assert capture(model, row, fresh_indexers(model), topk=59)[:, WAYS.index("oracle")].min() > 0.98
    trained = capture(model, row, [layer.attention.indexer for layer in model.layers], topk=9)
    assert torch.equal(trained[:, WAYS.index("indexer")], trained[:, WAYS.index("untrained")])


def test_the_gap_is_none_where_everything_is_chosen() -> None:
    model, row = build(everything()), random_tokens(60)
    sparse, dense, tokens = loss_gap(model, row, first=9)
    assert tokens == 60 - 9 - 1 and abs(sparse - dense) > 1e-3
    sparse, dense, _ = loss_gap(build(everything().but(selection=INDEXER.but(index_topk=60))), row, first=9)
    assert sparse == pytest.approx(dense, rel=1e-5)


def test_a_model_is_measured_on_long_documents(model: Transformer, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.evals.indexer.LENGTH", 64)
    result = indexer(model, corpus, rows=4)
    assert (result["length"], result["topk"], result["rows"]) == (128, 16, 4)  # 8 times what is chosen
    assert all(id.startswith("long/") for id in result["documents"]) and len(result["documents"]) == 3
    mean = sum(layer["indexer"] for layer in result["layers"]) / 3
    assert result["total"]["indexer"] == pytest.approx(mean) and 0 < mean < result["total"]["oracle"] < 1
    gap = result["sparse_minus_dense"]
    assert gap["difference"] == pytest.approx(gap["sparse"] - gap["dense"]) and gap["tokens"] == 4 * (128 - 16 - 1)
    assert gap["interval"][0] <= gap["difference"] <= gap["interval"][1]


def test_rows_are_taken_in_turn_and_without_overlap(model: Transformer, corpus: Corpus) -> None:
    rows = long_rows(model, corpus, 100, 99)
    names = [id for id, _ in rows]
    assert sorted(names[:3]) == ["long/0", "long/1", "long/2"] and names[:3] == names[3:6]
    bos = model.tokenizer.special("bos")
    assert [bool((row == bos).any()) for _, row in rows] == [True] * 3 + [False] * (len(rows) - 3)
    assert len(long_rows(model, corpus, 100, 2)) == 2


def test_what_cannot_be_measured_says_why(model: Transformer, corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="2048 tokens exceed the 512 positions"):
        indexer(model, corpus)
    with pytest.raises(ConfigError, match="no lightning indexer"):
        indexer(build(multi_head()), corpus)
    with pytest.raises(DataError, match="no held-out document has 100000 tokens"):
        long_rows(model, corpus, 100_000, 1)


def test_of_compressed_layers_those_with_an_indexer_are_measured() -> None:
    """A key is then a block of tokens; the layers that read their window or every block have nothing to choose."""
    model, row = build(small()), random_tokens(80)
    judged = [i for i in range(model.config.num_hidden_layers) if model.config.has_indexer(i)]
    found = capture(model, row, fresh_indexers(model), topk=2)
    assert found.shape == (len(judged), len(WAYS) + 1) and 0 < len(judged) < len(model.layers)
    held = found[:, : len(WAYS)]
    assert (held <= held[:, [WAYS.index("oracle")]] + 1e-6).all() and (held > 0).all()
