"""Steps of decoding: whole layers in one kernel, few rows at a time, and INT8 weights, against the forward that they stand for."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

import fourfold
from fourfold.config import AttentionConfig, ExpertsConfig, ModelConfig
from fourfold.errors import CheckpointError, ConfigError
from fourfold.formats import ours
from fourfold.model.inputs import Batch
from fourfold.model.int8 import to_int8
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from fourfold.ops import native
from fourfold.ops.int8 import Int8Weight
from tests.compare import assert_close, assert_same_greedy

GROUPED = AttentionConfig(num_attention_heads=6, num_key_value_heads=2, head_dim=16)
LATENT = AttentionConfig(
    num_attention_heads=4, q_lora_rank=32, kv_lora_rank=32, qk_nope_head_dim=16, qk_rope_head_dim=16, v_head_dim=16
)
EXPERTS = ExpertsConfig(
    n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, n_shared_experts=1, first_k_dense_replace=1
)
PARTS = {
    "plain": {"attention": GROUPED},
    "plain, halves": {"attention": GROUPED.but(rope_interleave=True), "tie_word_embeddings": False},
    "latent, experts": {"attention": LATENT, "experts": EXPERTS},
}
LENGTHS, STEPS = (5, 17, 64), 4


def small(name: str) -> Transformer:
    sizes = {"vocab_size": 61, "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 96, "max_position_embeddings": 256}
    config = ModelConfig(**({"tie_word_embeddings": True, "initializer_range": 0.08} | sizes | PARTS[name]))
    return Transformer(config).init_weights(3).eval()


@torch.inference_mode()
def decoded(model: Transformer, lengths: tuple[int, ...] = LENGTHS, only: int | None = None) -> Tensor:
    """Logits [steps, S, V] of some tokens after prompts of some lengths, for all sequences or for one alone."""
    generator = torch.Generator().manual_seed(5)
    prompts = [torch.randint(61, (length,), generator=generator) for length in lengths]
    tokens = torch.randint(61, (STEPS, len(lengths)), generator=generator)
    if only is not None:
        prompts, tokens = prompts[only : only + 1], tokens[:, only : only + 1]
    cache = model.new_cache(len(prompts))
    model(Batch.ragged(prompts), cache=cache)
    return torch.stack([model(Batch.ragged(list(row[:, None]), past=cache.lengths), cache=cache).logits for row in tokens])


@pytest.fixture
def called(fourfold_home: Path, monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Names of the kernels that ran."""
    if native.kernels() is None:
        pytest.skip("kernels are switched off, or there is no g++ to build them")
    names, call = set(), native.call
    monkeypatch.setattr(native, "call", lambda name, *rest: names.add(name) or call(name, *rest))
    return names


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_steps_are_the_forward_without_kernels(name: str, packed: bool, called: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = to_int8(small(name)) if packed else small(name)
    found = decoded(model)
    plain = name.startswith("plain")
    assert ("plain_layer" in called) is plain
    assert ("attend_few" in called) is (packed or not plain)
    assert ("experts_few" in called) is (model.config.experts is not None)
    monkeypatch.setattr(native, "ready", lambda *tensors: False)
    assert_same_greedy(found, decoded(model))


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("name", PARTS)
def test_a_sequence_among_others_is_itself_alone(name: str, packed: bool, called: set[str]) -> None:
    model = to_int8(small(name)) if packed else small(name)
    together = decoded(model)
    for only in range(len(LENGTHS)):
        alone = decoded(model, only=only)[:, 0]
        assert_close(together[:, only], alone)
        assert not (packed and name.startswith("plain")) or torch.equal(together[:, only], alone)


def test_a_layer_in_one_kernel_is_the_same_to_the_last_bit(called: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("plain")
    fused = decoded(model)
    for layer in model.layers:
        layer.plain = False
    assert torch.equal(fused, decoded(model))


def test_a_layer_that_is_looked_into_goes_the_long_way(called: set[str]) -> None:
    model = small("plain")
    with torch.inference_mode():
        cache = model.new_cache(1)
        model(torch.tensor([[3]]), cache=cache, trace=Trace(attention_mass=True))
    assert "plain_layer" not in called


@pytest.mark.parametrize("name", PARTS)
def test_int8_is_near_the_model_it_was_made_of(name: str) -> None:
    model = small(name)
    expected, tied = decoded(model), model.config.tie_word_embeddings
    found = decoded(to_int8(model))
    assert isinstance(model.head, Int8Weight)
    assert not model.config.tie_word_embeddings
    assert tied is (name != "plain, halves")
    assert 0 < (found - expected).norm() / expected.norm() < 0.1


def test_int8_is_asked_for_when_a_model_is_loaded(tmp_path: Path) -> None:
    folder = ours.save(small("plain"), tmp_path / "model")
    model = fourfold.load(folder, weights="int8")
    assert isinstance(model.layers[0].ffn.gate_up_proj.weight, Int8Weight)
    assert_close(decoded(model), decoded(to_int8(small("plain"))))
    with pytest.raises(CheckpointError, match="INT8 weights cannot be saved"):
        ours.save(model, tmp_path / "again")
    with pytest.raises(ConfigError, match="weights: 'int3'"):
        fourfold.load(folder, weights="int3")
