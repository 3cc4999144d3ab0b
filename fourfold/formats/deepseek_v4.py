"""The format of the released DeepSeek-V4: Flash, Pro and their base checkpoints, under three sets of names.

The released checkpoints have short ones (section 3 of their inference code), transformers has its own for the same tensors, with
the experts of a layer in two stacks, and what it saves is a mixture: the short ones under `model.`, but for a few.

    layers.N.attn.{wq_a,q_norm,wq_b,wkv,kv_norm,wo_a,wo_b}.weight · attn.attn_sink · attn.compressor.{ape,wkv,wgate,norm}
    layers.N.attn.indexer.{wq_b,weights_proj}.weight · attn.indexer.compressor.{ape,wkv,wgate,norm}
    layers.N.ffn.gate.{weight, bias or tid2eid} · ffn.experts.E.{w1,w3,w2}.weight · ffn.shared_experts.{w1,w3,w2}.weight
    layers.N.{attn_norm,ffn_norm}.weight · hc_{attn,ffn}_{fn,base,scale} · embed, head, norm .weight · hc_head_{fn,base,scale}
    mtp.J = a layer + {e_proj,h_proj,enorm,hnorm,norm}.weight · hc_head_{fn,base,scale}

w1 is the gate, w3 up, w2 down. What config.json says is in v4_config.py.
"""

from collections.abc import Collection

from fourfold.config import ExpertsConfig, ModelConfig
from fourfold.formats import v4_config
from fourfold.formats.adapter import Adapter, Place
from fourfold.formats.fields import Published
from fourfold.formats.trunk import Places

Row = tuple[str, str, str]  # our name, the released one, transformers' own
RELEASED, PORTED = 1, 2  # columns of the tables
BLOCK: tuple[Row, ...] = (
    ("attention.q_a_proj.weight", "attn.wq_a.weight", "self_attn.q_a_proj.weight"),
    ("attention.q_a_layernorm.weight", "attn.q_norm.weight", "self_attn.q_a_norm.weight"),
    ("attention.q_b_proj.weight", "attn.wq_b.weight", "self_attn.q_b_proj.weight"),
    ("attention.kv_proj.weight", "attn.wkv.weight", "self_attn.kv_proj.weight"),
    ("attention.kv_norm.weight", "attn.kv_norm.weight", "self_attn.kv_norm.weight"),
    ("attention.sinks", "attn.attn_sink", "self_attn.sinks"),
    ("attention.o_a_proj.weight", "attn.wo_a.weight", "self_attn.o_a_proj.weight"),
    ("attention.o_b_proj.weight", "attn.wo_b.weight", "self_attn.o_b_proj.weight"),
    ("attention_norm.weight", "attn_norm.weight", "input_layernorm.weight"),
    ("ffn_norm.weight", "ffn_norm.weight", "post_attention_layernorm.weight"),
    ("attention_site.fn", "hc_attn_fn", "attn_hc.fn"),
    ("attention_site.base", "hc_attn_base", "attn_hc.base"),
    ("attention_site.scale", "hc_attn_scale", "attn_hc.scale"),
    ("ffn_site.fn", "hc_ffn_fn", "ffn_hc.fn"),
    ("ffn_site.base", "hc_ffn_base", "ffn_hc.base"),
    ("ffn_site.scale", "hc_ffn_scale", "ffn_hc.scale"),
    ("ffn.router.weight", "ffn.gate.weight", "mlp.gate.weight"),
)
HASHED: Row = ("ffn.router.tid2eid", "ffn.gate.tid2eid", "mlp.gate.tid2eid")
BALANCED: Row = ("ffn.router.bias", "ffn.gate.bias", "mlp.gate.e_score_correction_bias")
COMPRESSOR: tuple[Row, ...] = (
    ("ape", "ape", "position_bias"),
    ("wkv.weight", "wkv.weight", "kv_proj.weight"),
    ("wgate.weight", "wgate.weight", "gate_proj.weight"),
    ("norm.weight", "norm.weight", "kv_norm.weight"),
)
SCORER = "self_attn.compressor.indexer.scorer"
INDEXER: tuple[Row, ...] = (
    ("attention.indexer.wq_b.weight", "attn.indexer.wq_b.weight", "self_attn.compressor.indexer.q_b_proj.weight"),
    ("attention.indexer.weights_proj.weight", "attn.indexer.weights_proj.weight", f"{SCORER}.weights_proj.weight"),
)
OWN_COMPRESSOR: Row = ("attention.compressor", "attn.compressor", "self_attn.compressor")
INDEX_COMPRESSOR: Row = ("attention.indexer.compressor", "attn.indexer.compressor", "self_attn.compressor.indexer")
ENDS: tuple[Row, ...] = (
    ("embed.weight", "embed.weight", "model.embed_tokens.weight"),
    ("norm.weight", "norm.weight", "model.norm.weight"),
    ("collapse.fn", "hc_head_fn", "model.hc_head.hc_fn"),
    ("collapse.base", "hc_head_base", "model.hc_head.hc_base"),
    ("collapse.scale", "hc_head_scale", "model.hc_head.hc_scale"),
)
HEADS: Row = ("head", "head.weight", "lm_head.weight")
PREDICTION = ("enorm.weight", "hnorm.weight", "norm.weight")


class DeepseekV4Adapter(Adapter):
    model_type = "deepseek_v4"
    architecture = "DeepseekV4ForCausalLM"

    def config(self, published: Published) -> ModelConfig:
        return v4_config.read(published)

    def published(self, config: ModelConfig) -> Published:
        return v4_config.write(config, self.model_type)

    def places(self, config: ModelConfig, names: Collection[str] = ()) -> Places:
        """By the names present: transformers' own, what it saves, or (also for writing) the released ones."""
        column = PORTED if any(".self_attn." in name for name in names) else RELEASED
        saved = column == RELEASED and any(name.startswith("model.") for name in names)
        ends = {name[PORTED if saved else column]: Place(name[0]) for name in ENDS}
        tied, head = config.tie_word_embeddings, HEADS[column]
        if not tied or head in names:
            ends[head] = Place("embed.weight" if tied else HEADS[0], copy=tied)
        blocks: Places = {}
        for n in range(config.num_hidden_layers):
            prefix = f"layers.{n}" if column == RELEASED and not saved else f"model.layers.{n}"
            blocks |= _block(config, n, prefix, f"layers.{n}", column)
        if any(".attn.norm." in name for name in names):  # transformers' way back cannot tell this norm from the compressors'
            blocks = {name.replace(".attn.kv_norm.", ".attn.norm."): place for name, place in blocks.items()}
        for depth in range(config.num_nextn_predict_layers):
            blocks |= _prediction(config, depth)
        return ends | blocks

    def fitted(self, config: ModelConfig, names: Collection[str]) -> ModelConfig:
        """transformers leaves multi-token prediction out when it saves."""
        depths = config.num_nextn_predict_layers
        while depths and not any(name.startswith(f"mtp.{depths - 1}.") for name in names):
            depths -= 1
        ratios = config.compression.compress_ratios[: config.num_hidden_layers + depths]
        return config.but(num_nextn_predict_layers=depths, compression=config.compression.but(compress_ratios=ratios))

    def ignores(self, name: str, published: Published) -> bool:
        """Copies of embedding and head beside multi-token prediction, which the released code does not read either; and the
        drafting stages that later builds have in its place.
        """
        beside = v4_config.drafts(published) or ".emb" in name or name.endswith(".head.weight")
        return super().ignores(name, published) or (name.startswith("mtp.") and beside)


def _block(config: ModelConfig, n: int, theirs: str, ours: str, column: int) -> Places:
    compression = config.compression
    ratio = compression.compress_ratios[n]
    rows = [*BLOCK, HASHED if config.is_hashed(n) else BALANCED]
    if ratio:
        rows += _joined(OWN_COMPRESSOR, COMPRESSOR)
    if ratio == compression.csa_ratio:
        rows += [*INDEXER, *_joined(INDEX_COMPRESSOR, COMPRESSOR)]
    places = {f"{theirs}.{row[column]}": Place(f"{ours}.{row[0]}") for row in rows}
    return places | _experts(config.experts, theirs, f"{ours}.ffn", column)


def _joined(prefix: Row, rows: Collection[Row]) -> list[Row]:
    return [(f"{prefix[0]}.{a}", f"{prefix[1]}.{b}", f"{prefix[2]}.{c}") for a, b, c in rows]


def _experts(sizes: ExpertsConfig, theirs: str, ours: str, column: int) -> Places:
    """Gate and up lie in one matrix of ours; the experts of a layer in one stack of ours and of transformers."""
    width = sizes.moe_intermediate_size
    gate, up = slice(0, width), slice(width, 2 * width)
    if column == PORTED:
        shared, (first, third, second) = f"{theirs}.mlp.shared_experts", ("gate_proj", "up_proj", "down_proj")
        stacks = f"{theirs}.mlp.experts"
        places = {f"{stacks}.gate_up_proj": Place(f"{ours}.gate_up.weight"), f"{stacks}.down_proj": Place(f"{ours}.down.weight")}
    else:
        shared, (first, third, second), places = f"{theirs}.ffn.shared_experts", ("w1", "w3", "w2"), {}
        for e in range(sizes.n_routed_experts):
            expert = f"{theirs}.ffn.experts.{e}"
            places[f"{expert}.w1.weight"] = Place(f"{ours}.gate_up.weight", (e, gate))
            places[f"{expert}.w3.weight"] = Place(f"{ours}.gate_up.weight", (e, up))
            places[f"{expert}.w2.weight"] = Place(f"{ours}.down.weight", (e,))
    places[f"{shared}.{first}.weight"] = Place(f"{ours}.shared.gate_up_proj.weight", (gate,))
    places[f"{shared}.{third}.weight"] = Place(f"{ours}.shared.gate_up_proj.weight", (up,))
    places[f"{shared}.{second}.weight"] = Place(f"{ours}.shared.down_proj.weight")
    return places


def _prediction(config: ModelConfig, depth: int) -> Places:
    """e_proj and h_proj stand side by side in one matrix of ours."""
    prefix, d = f"mtp.{depth}", config.hidden_size
    places = _block(config, config.num_hidden_layers + depth, prefix, f"{prefix}.layer", RELEASED)
    places |= {f"{prefix}.{name}": Place(f"{prefix}.{name}") for name in PREDICTION}
    places |= {f"{prefix}.hc_head_{name}": Place(f"{prefix}.collapse.{name}") for name in ("fn", "base", "scale")}
    places[f"{prefix}.e_proj.weight"] = Place(f"{prefix}.eh_proj.weight", (slice(None), slice(0, d)))
    places[f"{prefix}.h_proj.weight"] = Place(f"{prefix}.eh_proj.weight", (slice(None), slice(d, 2 * d)))
    return places


ADAPTER = DeepseekV4Adapter()
