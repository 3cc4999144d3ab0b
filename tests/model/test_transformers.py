"""ours = theirs: logits of small random models of the transformers library, an independent implementation of the family.

Its weights go into our Transformer through the table below; sizes are odd, norms and biases away from their start. The library's
V3.2 takes ties in its top-k as torch.topk leaves them, so it is given 32 index heads, with which no scores tie.
"""

import re

import pytest
import torch
from torch import Tensor

from fourfold.config import AttentionConfig, ExpertsConfig, ModelConfig, RopeScaling, SelectionConfig
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from tests.compare import assert_same_greedy, assert_same_selection

transformers = pytest.importorskip("transformers")

LENGTH, VOCABULARY, HIDDEN = 100, 83, 36
YARN = {"factor": 8.0, "original_max_position_embeddings": 16, "beta_fast": 4.0, "beta_slow": 1.0}
YARNS = {
    "plain": None,
    "yarn": YARN | {"mscale": 1.0, "mscale_all_dim": 1.0},
    "yarn, mscale 0.7 and 0.4": YARN | {"mscale": 0.7, "mscale_all_dim": 0.4},
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}

NAMES = {  # theirs -> ours; several of theirs stacked make one of ours
    r"model\.embed_tokens\.weight": "embed.weight",
    r"model\.norm\.weight": "norm.weight",
    r"lm_head\.weight": "head",
    r"model\.layers\.(\d+)\.input_layernorm\.weight": r"layers.\1.attention_norm.weight",
    r"model\.layers\.(\d+)\.post_attention_layernorm\.weight": r"layers.\1.ffn_norm.weight",
    r"model\.layers\.(\d+)\.self_attn\.kv_a_proj_with_mqa\.(\w+)": r"layers.\1.attention.kv_a_proj.\2",
    r"model\.layers\.(\d+)\.self_attn\.(.+)": r"layers.\1.attention.\2",
    r"model\.layers\.(\d+)\.mlp\.gate\.weight": r"layers.\1.ffn.router.weight",
    r"model\.layers\.(\d+)\.mlp\.gate\.e_score_correction_bias": r"layers.\1.ffn.router.bias",
    r"model\.layers\.(\d+)\.mlp\.experts\.gate_up_proj": r"layers.\1.ffn.gate_up.weight",
    r"model\.layers\.(\d+)\.mlp\.experts\.down_proj": r"layers.\1.ffn.down.weight",
    r"model\.layers\.(\d+)\.mlp\.shared_experts\.(?:gate|up)_proj\.weight": r"layers.\1.ffn.shared.gate_up_proj.weight",
    r"model\.layers\.(\d+)\.mlp\.shared_experts\.down_proj\.weight": r"layers.\1.ffn.shared.down_proj.weight",
    r"model\.layers\.(\d+)\.mlp\.(?:gate|up)_proj\.weight": r"layers.\1.ffn.gate_up_proj.weight",
    r"model\.layers\.(\d+)\.mlp\.down_proj\.weight": r"layers.\1.ffn.down_proj.weight",
}


def renamed(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    """Their state by our names; gate comes before up in both orders."""
    ours: dict[str, Tensor] = {}
    for name, tensor in sorted(theirs.items()):  # "gate_proj" sorts before "up_proj"
        pattern = next(pattern for pattern in NAMES if re.fullmatch(pattern, name))
        new = re.sub(pattern, NAMES[pattern], name)
        ours[new] = torch.cat([ours[new], tensor]) if new in ours else tensor
    return ours


@torch.no_grad()
def compared(their_config, config: ModelConfig) -> Trace:
    """Build theirs at random, carry it over, compare logits (full pass, and ours in chunks); returns our trace."""
    torch.manual_seed(3)
    plain = dict(attn_implementation="eager", experts_implementation="eager")
    theirs = transformers.AutoModelForCausalLM.from_config(their_config, **plain).float().eval()
    for name, tensor in [*theirs.named_parameters(), *theirs.named_buffers()]:
        if "norm" in name:
            tensor.add_(0.3 * torch.randn_like(tensor))
        elif "bias" in name:
            tensor.copy_(0.1 * torch.randn_like(tensor))
        elif tensor.dim() > 1:
            tensor.normal_(0.0, 0.15)
    state = theirs.state_dict()
    if config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    ours = Transformer(config).eval()
    ours.load_state_dict(renamed(state))
    tokens, trace = torch.randint(0, VOCABULARY, (2, LENGTH)), Trace()
    expected = theirs(tokens).logits
    assert expected.std() > 0.2
    assert_same_greedy(ours(tokens, trace=trace).logits, expected)
    cache = ours.new_cache(2)
    chunked = torch.cat([ours(chunk, cache=cache).logits for chunk in tokens.split([61, 1, 1, 37], dim=1)], dim=1)
    assert_same_greedy(chunked, expected, "in chunks")
    return trace


def rope(scaling: dict | None, kind: str = "yarn") -> dict:
    return {"rope_type": kind if scaling else "default", "rope_theta": 10000.0} | (scaling or {})


def latent(q_lora_rank: int | None, scaling: dict | None) -> AttentionConfig:
    return AttentionConfig(
        num_attention_heads=3,
        q_lora_rank=q_lora_rank,
        kv_lora_rank=20,
        qk_nope_head_dim=10,
        qk_rope_head_dim=8,
        v_head_dim=14,
        rope_scaling=RopeScaling(**scaling) if scaling else None,
    )


def ours(attention: AttentionConfig, **parts: object) -> ModelConfig:
    return ModelConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=3,
        intermediate_size=52,
        max_position_embeddings=256,
        attention=attention,
        **parts,
    )


def shared_sizes(scaling: dict | None) -> dict:
    """What the configs of the latent family have in common."""
    return dict(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=3,
        intermediate_size=52,
        moe_intermediate_size=11,
        max_position_embeddings=256,
        num_attention_heads=3,
        num_key_value_heads=3,
        kv_lora_rank=20,
        qk_nope_head_dim=10,
        qk_rope_head_dim=8,
        v_head_dim=14,
        n_routed_experts=12,
        num_experts_per_tok=4,
        first_k_dense_replace=1,
        rope_parameters=rope(scaling),
    )


V3_EXPERTS = ExpertsConfig(
    n_routed_experts=12,
    n_shared_experts=1,
    num_experts_per_tok=4,
    moe_intermediate_size=11,
    first_k_dense_replace=1,
    n_group=4,
    topk_group=2,
    routed_scaling_factor=2.5,
)


@pytest.mark.parametrize("yarn", YARNS)
@pytest.mark.parametrize("q_lora_rank", [26, None])
def test_deepseek_v3(yarn: str, q_lora_rank: int | None) -> None:
    scaling = YARNS[yarn]
    their_config = transformers.DeepseekV3Config(
        **shared_sizes(scaling), q_lora_rank=q_lora_rank, n_shared_experts=1, n_group=4, topk_group=2, num_nextn_predict_layers=0
    )
    compared(their_config, ours(latent(q_lora_rank, scaling), experts=V3_EXPERTS))


def test_deepseek_v3_with_rope_in_halves() -> None:
    their_config = transformers.DeepseekV3Config(
        **shared_sizes(None),
        q_lora_rank=26,
        n_shared_experts=1,
        n_group=4,
        topk_group=2,
        rope_interleave=False,
        norm_topk_prob=False,
    )
    config = ours(latent(26, None).but(rope_interleave=False), experts=V3_EXPERTS.but(norm_topk_prob=False))
    compared(their_config, config)


@pytest.mark.parametrize("yarn", YARNS)
@pytest.mark.parametrize("q_lora_rank", [26, None])
def test_deepseek_v2(yarn: str, q_lora_rank: int | None) -> None:
    scaling, lite = YARNS[yarn], q_lora_rank is None
    groups = {"n_group": 1, "topk_group": 1} if lite else {"n_group": 4, "topk_group": 2}
    method, factor = ("greedy", 1.0) if lite else ("group_limited_greedy", 6.0)
    their_config = transformers.DeepseekV2Config(
        **shared_sizes(scaling),
        **groups,
        q_lora_rank=q_lora_rank,
        n_shared_experts=2,
        topk_method=method,
        routed_scaling_factor=factor,
    )
    experts = V3_EXPERTS.but(
        **groups, n_shared_experts=2, topk_method=method, scoring_func="softmax", norm_topk_prob=False, routed_scaling_factor=factor
    )
    compared(their_config, ours(latent(q_lora_rank, scaling), experts=experts))


@pytest.mark.parametrize("yarn", ["plain", "yarn"])
@pytest.mark.parametrize("topk", [9, 40])
def test_deepseek_v32(yarn: str, topk: int) -> None:
    scaling = YARNS[yarn]
    index = dict(index_n_heads=32, index_head_dim=18, index_topk=topk)
    their_config = transformers.DeepseekV32Config(
        **shared_sizes(scaling), **index, q_lora_rank=26, n_shared_experts=1, n_group=4, topk_group=2
    )
    their_choice: list[Tensor] = []
    forward = transformers.models.deepseek_v32.modeling_deepseek_v32.DeepseekV32Indexer.forward

    def spy(*args: object, **kwargs: object) -> Tensor:
        their_choice.append(forward(*args, **kwargs))
        return their_choice[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transformers.models.deepseek_v32.modeling_deepseek_v32.DeepseekV32Indexer, "forward", spy)
        trace = compared(their_config, ours(latent(26, scaling), experts=V3_EXPERTS, selection=SelectionConfig(**index)))
    causal = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()
    for layer, choice in zip(trace.layers, their_choice[:3], strict=True):
        theirs = torch.zeros(2, LENGTH, LENGTH, dtype=torch.bool).scatter(-1, choice.long(), True) & causal
        assert_same_selection(layer.index_mask, theirs)


@pytest.mark.parametrize("key_value_heads", [6, 2, 1])
@pytest.mark.parametrize("kind", ["plain", "yarn", "yarn in the softmax", "llama3"])
def test_llama(key_value_heads: int, kind: str) -> None:
    kind, _, in_softmax = kind.partition(" ")
    scaling = {"plain": None, "yarn": YARN, "llama3": LLAMA3}[kind]
    tied = kind == "yarn"
    their_config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        num_hidden_layers=3,
        intermediate_size=52,
        max_position_embeddings=256,
        num_attention_heads=6,
        num_key_value_heads=key_value_heads,
        head_dim=10,
        rms_norm_eps=1e-5,
        rope_parameters=rope(scaling, kind),
        tie_word_embeddings=tied,
    )
    mine = None
    if scaling:  # their tables of cos and sin carry YaRN's factor; ours may too, or leave its square to the softmax
        extra = {"mscale_all_dim": 0.0} if kind == "yarn" and not in_softmax else {}
        mine = RopeScaling(type=kind, **scaling, **extra)
    attention = AttentionConfig(num_attention_heads=6, num_key_value_heads=key_value_heads, head_dim=10, rope_scaling=mine)
    compared(their_config, ours(attention, rms_norm_eps=1e-5, tie_word_embeddings=tied))
