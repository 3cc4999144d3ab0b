"""Random models of the transformers library, an independent implementation, as the folders that it saves.

Sizes differ from each other in every config. Matrices, norms and biases have real spread, so that attention and routers are far
from uniform and every tensor tells in the logits.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fourfold.model.transformer import Transformer
from tests.compare import assert_same_greedy

transformers = pytest.importorskip("transformers")

VOCABULARY, LENGTH = 199, 300
GAIN = 1.5  # of a matrix: the standard deviation of its outputs for inputs of one
PLAIN = {"attn_implementation": "eager", "experts_implementation": "eager"}

YARN = {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 64, "beta_fast": 8.0, "beta_slow": 1.0}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def rope(theta: float = 10000.0, scaling: dict[str, Any] | None = None, **more: float) -> dict[str, Any]:
    return {"rope_theta": theta, "rope_type": "default"} | (scaling or {}) | more


def heads(count: int, q_lora_rank: int | None, kv_lora_rank: int, nope: int, turned: int, value: int) -> dict[str, Any]:
    """Latent attention."""
    return {
        "num_attention_heads": count,
        "num_key_value_heads": count,
        "q_lora_rank": q_lora_rank,
        "kv_lora_rank": kv_lora_rank,
        "qk_nope_head_dim": nope,
        "qk_rope_head_dim": turned,
        "v_head_dim": value,
    }


def experts(routed: int, chosen: int, width: int, shared: int, dense: int, groups: int = 1, kept: int = 1) -> dict[str, Any]:
    return {
        "n_routed_experts": routed,
        "num_experts_per_tok": chosen,
        "moe_intermediate_size": width,
        "n_shared_experts": shared,
        "first_k_dense_replace": dense,
        "n_group": groups,
        "topk_group": kept,
    }


def sizes(hidden: int, layers: int, width: int, vocabulary: int = VOCABULARY) -> dict[str, int]:
    return {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": width, "vocab_size": vocabulary}


LLAMA = {
    "V1: every head its own keys": sizes(60, 3, 84) | {"num_attention_heads": 5, "rope_parameters": rope()},
    "R1-Distill: groups, Llama-3 rope": sizes(72, 3, 100)
    | {"num_attention_heads": 6, "num_key_value_heads": 2, "rope_parameters": rope(500000.0, LLAMA3), "rms_norm_eps": 1e-5},
    "biases, tied, one group, wide heads": sizes(63, 4, 70)
    | {
        "num_attention_heads": 7,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": rope(20000.0, YARN),
    },
    "Coder: every channel slower": sizes(66, 3, 57)
    | {"num_attention_heads": 3, "rope_parameters": rope(100000.0, {"rope_type": "linear", "factor": 4.0})},
    "YaRN with a factor of its own": sizes(54, 3, 61)
    | {"num_attention_heads": 9, "num_key_value_heads": 3, "rope_parameters": rope(10000.0, YARN, attention_factor=1.1)},
}

V2 = {
    "Lite: no query latent, plain routing": sizes(60, 3, 76)
    | heads(5, None, 24, 12, 8, 10)
    | experts(8, 3, 14, shared=2, dense=1)
    | {"topk_method": "greedy", "rope_parameters": rope(10000.0, YARN, mscale=0.707, mscale_all_dim=0.707)},
    "V2: groups": sizes(84, 4, 92)
    | heads(7, 36, 28, 10, 12, 16)
    | experts(12, 4, 11, shared=3, dense=2, groups=4, kept=2)
    | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 16.0, "rope_parameters": rope()},
    "YaRN in cos and sin": sizes(48, 3, 53)
    | heads(3, 30, 22, 14, 6, 9)
    | experts(10, 4, 9, shared=1, dense=0, groups=5, kept=3)
    | {"topk_method": "group_limited_greedy", "routed_scaling_factor": 6.0, "rope_parameters": rope(5000.0, YARN)},
    "biases, tied, two mscales": sizes(54, 3, 71)
    | heads(9, 26, 18, 6, 10, 5)
    | experts(9, 2, 13, shared=2, dense=1, groups=3, kept=1)
    | {
        "topk_method": "group_limited_greedy",
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": rope(10000.0, YARN, mscale=1.0, mscale_all_dim=0.5),
    },
}

V3 = {
    "V3": sizes(60, 4, 76)
    | heads(5, 34, 24, 12, 8, 10)
    | experts(16, 4, 14, shared=1, dense=2, groups=4, kept=2)
    | {"rope_parameters": rope(10000.0, YARN, mscale=1.0, mscale_all_dim=1.0)},
    "no query latent, no groups": sizes(52, 3, 67)
    | heads(3, None, 21, 10, 6, 13)
    | experts(11, 3, 9, shared=2, dense=1)
    | {"routed_scaling_factor": 1.3, "rope_parameters": rope()},
    "pairs as halves, weights as they are": sizes(48, 3, 53)
    | heads(7, 27, 18, 8, 12, 11)
    | experts(9, 4, 12, shared=3, dense=0, groups=3, kept=2)
    | {"rope_interleave": False, "norm_topk_prob": False, "rope_parameters": rope(30000.0, YARN)},
    "biases, tied, one group kept": sizes(66, 3, 58)
    | heads(4, 23, 30, 16, 10, 7)
    | experts(10, 2, 17, shared=1, dense=1, groups=2, kept=1)
    | {
        "attention_bias": True,
        "tie_word_embeddings": True,
        "rope_parameters": rope(10000.0, YARN, mscale=0.7, mscale_all_dim=0.4),
    },
}

V32 = {
    "V3.2": V3["V3"] | {"index_n_heads": 32, "index_head_dim": 16, "index_topk": 40},
    "every channel turned, no groups": V3["no query latent, no groups"]
    | {"q_lora_rank": 29, "index_n_heads": 35, "index_head_dim": 6, "index_topk": 24},
    "odd index heads, other factors": V3["pairs as halves, weights as they are"]
    | {"rope_interleave": True, "index_n_heads": 33, "index_head_dim": 21, "index_topk": 65},
    "biases, tied": V3["biases, tied, one group kept"] | {"index_n_heads": 48, "index_head_dim": 14, "index_topk": 96},
}

# Drawn so that in the test's 300 tokens no index score lies within 1e-4 of the cut, where rounding decides.
SEEDS = {"V3.2": 28, "every channel turned, no groups": 19, "odd index heads, other factors": 37, "biases, tied": 27}

FORMATS = {"llama": LLAMA, "deepseek_v2": V2, "deepseek_v3": V3, "deepseek_v32": V32}
CASES = [pytest.param((kind, name), id=f"{kind}-{name}") for kind, configs in FORMATS.items() for name in configs]


def random_folder(kind: str, name: str, folder: Path) -> torch.nn.Module:
    """Save the random model `name` of transformers' class for `kind`; returns it."""
    config = FORMATS[kind][name]
    common = {"max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None}
    model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(kind, **common | config), **PLAIN)
    spread(model.float().eval(), SEEDS.get(name, 0)).save_pretrained(folder)
    return model


def open_folder(folder: Path) -> torch.nn.Module:
    """What transformers makes of a folder."""
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **PLAIN).eval()


@torch.no_grad()
def spread(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():  # its buffers of angles are not among them
        noise = torch.randn(tensor.shape, generator=generator)
        if tensor.dim() > 1:
            tensor.copy_(noise * (1.0 if "embed" in name else GAIN * tensor.shape[-1] ** -0.5))
        elif "norm" in name and name.endswith("weight"):
            tensor.copy_(1 + 0.3 * noise)
        else:
            tensor.copy_(0.2 * noise)
    return model


def random_tokens(length: int = LENGTH, seed: int = 1) -> Tensor:
    return torch.randint(0, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(seed))


def assert_same_logits(ours: Transformer, theirs: torch.nn.Module, tokens: Tensor) -> None:
    """A full pass, and one in chunks with a cache."""
    expected = theirs(tokens).logits
    assert expected.std() > 0.5
    assert_same_greedy(ours(tokens).logits, expected)
    cache = ours.new_cache(1)
    parts = [ours(chunk, cache=cache).logits for chunk in tokens.split([61, 1, 1, 37, tokens.shape[1] - 100], dim=1)]
    assert_same_greedy(torch.cat(parts, dim=1), expected, "in chunks")
