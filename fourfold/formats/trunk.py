"""Tensors that every decoder with Llama's names has, and the two ways of its feed-forward: dense, and DeepSeek's experts.

`theirs` and `ours` are the prefixes of a layer: `model.layers.N` and `layers.N`.
"""

from collections.abc import Collection

from fourfold.config import ExpertsConfig, ModelConfig
from fourfold.formats.adapter import Place

Places = dict[str, Place]


def ends(config: ModelConfig, names: Collection[str]) -> Places:
    """Embedding, last norm and head. Tied files need no `lm_head.weight`, but some hold it."""
    tied = config.tie_word_embeddings
    places = {"model.embed_tokens.weight": Place("embed.weight"), "model.norm.weight": Place("norm.weight")}
    if not tied or "lm_head.weight" in names:
        places["lm_head.weight"] = Place("embed.weight" if tied else "head", copy=tied)
    return places


def norms(theirs: str, ours: str) -> Places:
    return {
        f"{theirs}.input_layernorm.weight": Place(f"{ours}.attention_norm.weight"),
        f"{theirs}.post_attention_layernorm.weight": Place(f"{ours}.ffn_norm.weight"),
    }


def feed_forward(config: ModelConfig, layer: int, theirs: str, ours: str) -> Places:
    """`theirs.mlp`, dense or experts, in `ours.ffn`."""
    if config.has_experts(layer):
        return _experts(config.experts, f"{theirs}.mlp", f"{ours}.ffn")
    return _dense(f"{theirs}.mlp", f"{ours}.ffn", config.intermediate_size)


def _dense(theirs: str, ours: str, width: int) -> Places:
    """Gate and up lie in one matrix [2f, d] of ours, gate first."""
    return {
        f"{theirs}.gate_proj.weight": Place(f"{ours}.gate_up_proj.weight", (slice(0, width),)),
        f"{theirs}.up_proj.weight": Place(f"{ours}.gate_up_proj.weight", (slice(width, 2 * width),)),
        f"{theirs}.down_proj.weight": Place(f"{ours}.down_proj.weight"),
    }


def _experts(sizes: ExpertsConfig, theirs: str, ours: str) -> Places:
    """Each expert has its matrices in a file; ours are two stacks, gate and up [E, 2f, d] and down [E, d, f]."""
    width = sizes.moe_intermediate_size
    places = {f"{theirs}.gate.weight": Place(f"{ours}.router.weight")}
    if sizes.topk_method == "noaux_tc":
        places[f"{theirs}.gate.e_score_correction_bias"] = Place(f"{ours}.router.bias")
    for e in range(sizes.n_routed_experts):
        expert = f"{theirs}.experts.{e}"
        places[f"{expert}.gate_proj.weight"] = Place(f"{ours}.gate_up.weight", (e, slice(0, width)))
        places[f"{expert}.up_proj.weight"] = Place(f"{ours}.gate_up.weight", (e, slice(width, 2 * width)))
        places[f"{expert}.down_proj.weight"] = Place(f"{ours}.down.weight", (e,))
    if sizes.n_shared_experts:
        places |= _dense(f"{theirs}.shared_experts", f"{ours}.shared", sizes.n_shared_experts * width)
    return places
