"""Loads by hand, in a model whose router is made to favour one expert, and by their bounds on a model."""

import pytest
import torch

from fourfold.data.corpus import Corpus
from fourfold.errors import ConfigError
from fourfold.evals.experts import experts, largest, loads
from fourfold.model.transformer import Transformer
from tests.builders import VOCABULARY, build, everything, multi_head, random_tokens


def test_largest_load_by_hand() -> None:
    counted = torch.tensor([[[3.0, 1, 0, 0], [1, 1, 1, 1]], [[0, 1, 3, 0], [2, 2, 0, 0]]])
    assert largest(counted).tolist() == [[3, 1], [3, 2]]  # of a batch
    assert largest(counted.sum(0)).tolist() == [1.5, 1.5]  # of both together


def test_every_choice_is_counted_once_and_a_favourite_shows() -> None:
    model, tokens = build(everything()), random_tokens(3, 41)
    documents, chosen = torch.zeros_like(tokens), model.config.experts.num_experts_per_tok
    counted = loads(model, tokens, documents)
    assert counted.shape == (2, model.config.experts.n_routed_experts)  # the first layer is dense
    assert (counted.sum(-1) == 3 * 40 * chosen).all() and tokens.max() < VOCABULARY
    router = model.layers[2].ffn.router
    router.bias[0] += 100.0
    assert loads(model, tokens, documents)[1, 0] == 3 * 40  # chosen by every token


def test_a_model_is_measured_on_held_out_rows(model: Transformer, corpus: Corpus) -> None:
    result = experts(model, corpus, batches=2)
    assert [layer["layer"] for layer in result["layers"]] == [1, 2]
    most = model.config.experts.n_routed_experts / model.config.experts.num_experts_per_tok
    for layer in result["layers"]:
        assert 1 <= layer["all"] <= layer["worst"] <= most and 1 <= layer["mean"] <= layer["worst"]
    assert result["total"]["worst"] == max(layer["worst"] for layer in result["layers"])


def test_a_model_without_experts_has_none_to_measure(corpus: Corpus) -> None:
    with pytest.raises(ConfigError, match="no routed experts"):
        experts(build(multi_head()), corpus)
