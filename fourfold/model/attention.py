"""How chosen tokens are read: multi-head and grouped-query attention, and latent attention (MLA) in two equal forms.

An attention projects its input to queries and to the rows that the layer remembers, and reads whatever a Selection names.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.model.compressed import CompressedAttention
from fourfold.model.inputs import Context
from fourfold.model.rope import rotate, yarn_attention_scale
from fourfold.model.selection import Indexer, Selection, chunks
from fourfold.model.state import Fields, LayerState
from fourfold.ops.attention import attend, attend_chosen, attend_in_parts
from fourfold.ops.int8 import Int8Weight
from fourfold.ops.linear import Linear, dense
from fourfold.ops.norm import RMSNorm


class Attention(nn.Module):
    """The common course; a subclass says how to `project` and how to `keys_values` what is remembered."""

    def __init__(self, config: ModelConfig, value_dim: int) -> None:
        super().__init__()
        sizes = config.attention
        self.heads, self.scale, self.interleaved = sizes.num_attention_heads, 1.0, sizes.interleaved
        self.o_proj = Linear(self.heads * value_dim, config.hidden_size, sizes.attention_bias)
        self.indexer = Indexer(config) if config.selection is not None else None

    def fields(self) -> Fields:
        """What a layer state keeps for this attention, the indexer's own keys included."""
        return self.own_fields() | (self.indexer.fields() if self.indexer is not None else {})

    def forward(self, x: Tensor, context: Context, state: LayerState | None = None) -> Tensor:
        """x [N, d] -> [N, d]; appends this chunk to `state` and reads from all of it."""
        batch = context.batch
        queries, rows, query_input = self.project(x, context)
        if state is not None:
            index_rows = {} if self.indexer is None else {"index_key": self.indexer.keys(x, context)}
            state.append(batch.lengths, **rows, **index_rows)
            rows = {name: state.read(name) for name in rows}
        else:
            rows = {name: batch.pad(row) for name, row in rows.items()}
        keys = next(iter(rows.values())).shape[1]
        gathers = self.indexer is not None and self.indexer.gathers(keys, context)
        reader = self.reader(batch.pad(queries), rows, gathers)
        out = [reader.read(selection, context) for selection in self.select(x, query_input, context, state)]
        return self.o_proj(batch.unpad(_joined(out)).flatten(1))

    def select(self, x: Tensor, query_input: Tensor, context: Context, state: LayerState | None) -> Iterator[Selection]:
        if self.indexer is not None:
            yield from self.indexer(x, query_input, context, state, everything=not context.sparse)
        else:
            yield Selection(slice(0, context.batch.longest))


class Reader:
    """Queries facing keys and values: q [S, L, H, D]; k [S, K, G, D]; v [S, K, G, E].

    `gathers`: read chosen rows one by one, not under a mask. `finish` maps what a head read to its output. `by_itself`: to the last
    bit as if each query came alone; INT8 weights round their inputs, which would make more of a last bit.
    """

    def __init__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        scale: float,
        gathers: bool,
        finish: Callable[[Tensor], Tensor] | None = None,
        by_itself: bool = False,
    ) -> None:
        self.q, self.k, self.v, self.scale, self.gathers, self.finish = q, k, v, scale, gathers, finish
        self.by_itself = by_itself

    def read(self, selection: Selection, context: Context) -> Tensor:
        """The outputs [S, C, H, E] of the selected queries, a few at a time."""
        if context.wants_mass or (torch.is_grad_enabled() and not self.gathers):
            return self._finished(self._read_for_training(selection, context))
        width = selection.queries.stop - selection.queries.start
        keys = selection.indices.shape[-1] * self.k.shape[-1] if self.gathers else self.k.shape[1]
        parts = chunks(width, self.q.shape[0] * self.q.shape[2] * keys)
        return _joined([self._finished(self._read(selection.part(part), context)) for part in parts])

    def _read(self, selection: Selection, context: Context) -> Tensor:
        q = self.q[:, selection.queries]
        if self.gathers:
            return attend_chosen(q, self.k, self.v, selection.indices, selection.valid, self.scale)
        mask = selection.mask(context.visible(selection.queries), self.k.shape[1])
        return attend(q, self.k, self.v, mask, self.scale, self.by_itself)

    def _read_for_training(self, selection: Selection, context: Context) -> Tensor:
        q, keys = self.q[:, selection.queries], self.k.shape[1]
        mask = selection.mask(context.visible(selection.queries), keys)
        if mask is None:
            mask = torch.ones(*q.shape[:2], keys, dtype=torch.bool, device=q.device)
        out, mass = attend_in_parts(q, self.k, self.v, mask, self.scale, context.wants_mass)
        if mass is not None:
            context.layer_trace.extend("attention_mass", mass)
        return out

    def _finished(self, out: Tensor) -> Tensor:
        return out if self.finish is None else self.finish(out)


class GroupedQueryAttention(Attention):
    """Heads share keys and values in groups (2305.13245); with as many groups as heads this is multi-head attention."""

    def __init__(self, config: ModelConfig) -> None:
        sizes = config.attention
        super().__init__(config, sizes.head_dim)
        self.groups, self.width = sizes.key_value_heads, sizes.head_dim
        self.scale = self.width**-0.5 * yarn_attention_scale(sizes.rope_scaling)
        self.q_proj = Linear(config.hidden_size, self.heads * self.width, sizes.attention_bias)
        self.k_proj = Linear(config.hidden_size, self.groups * self.width, sizes.attention_bias)
        self.v_proj = Linear(config.hidden_size, self.groups * self.width, sizes.attention_bias)

    def own_fields(self) -> Fields:
        return {"key": ((self.groups, self.width), None), "value": ((self.groups, self.width), None)}

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Queries [N, H, D], remembered rows, and the indexer's query input: x, as there is no query latent."""
        q, k, v = (p(x).unflatten(-1, (-1, self.width)) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotate(y, *context.rotary["attention"], self.interleaved) for y in (q, k))
        return q, {"key": k, "value": v}, x

    def reader(self, queries: Tensor, rows: dict[str, Tensor], gathers: bool) -> Reader:
        packed = isinstance(self.q_proj.weight, Int8Weight)
        return Reader(queries, rows["key"], rows["value"], self.scale, gathers, by_itself=packed)


class LatentAttention(Attention):
    """MLA (2405.04434, section 2.1): a token is remembered as one latent and one rotated key, shared by all heads.

    Expanded, the latent is multiplied out to keys and values of every head; absorbed, those matrices move to the query and the
    output instead, and the latent itself is read. Both give the same result; the second is cheaper when queries are few.
    """

    def __init__(self, config: ModelConfig) -> None:
        sizes = config.attention
        super().__init__(config, sizes.v_head_dim)
        self.nope, self.rope, self.value = sizes.qk_nope_head_dim, sizes.qk_rope_head_dim, sizes.v_head_dim
        self.rank = sizes.kv_lora_rank
        self.scale = (self.nope + self.rope) ** -0.5 * yarn_attention_scale(sizes.rope_scaling)
        d, bias, wide = config.hidden_size, sizes.attention_bias, self.heads * (self.nope + self.rope)
        if sizes.q_lora_rank is None:
            self.q_proj = Linear(d, wide)
        else:
            self.q_a_proj = Linear(d, sizes.q_lora_rank, bias)
            self.q_a_layernorm = RMSNorm(sizes.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = Linear(sizes.q_lora_rank, wide)
        self.compressed_query = sizes.q_lora_rank is not None
        self.kv_a_proj = Linear(d, self.rank + self.rope, bias)
        self.kv_a_layernorm = RMSNorm(self.rank, config.rms_norm_eps)
        self.kv_b_proj = Linear(self.rank, self.heads * (self.nope + self.value))

    def own_fields(self) -> Fields:
        return {"latent": ((self.rank + self.rope,), None)}

    def project(self, x: Tensor, context: Context) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        """Queries [N, H, nope + rope], the latent rows [N, rank + rope], and the indexer's query input."""
        if self.compressed_query:
            query_input = self.q_a_layernorm(self.q_a_proj(x))
            q = self.q_b_proj(query_input).unflatten(-1, (self.heads, -1))
        else:
            query_input = x
            q = self.q_proj(x).unflatten(-1, (self.heads, -1))
        q_nope, q_pe = q.split([self.nope, self.rope], dim=-1)
        latent, k_pe = self.kv_a_proj(x).split([self.rank, self.rope], dim=-1)
        q_pe, k_pe = (rotate(y, *context.rotary["attention"], self.interleaved) for y in (q_pe, k_pe))
        return (
            torch.cat([q_nope, q_pe], -1),
            {"latent": torch.cat([self.kv_a_layernorm(latent), k_pe], -1)},
            query_input,
        )

    def reader(self, queries: Tensor, rows: dict[str, Tensor], gathers: bool) -> Reader:
        """Expanding costs rank · (nope + value) per key, absorbing 2 · rank - nope - value more per query and key.

        So few queries are absorbed (up to 170 at V3's sizes), and all where the latent is no wider than what it expands to.
        """
        expansion, excess = self.rank * (self.nope + self.value), 2 * self.rank - self.nope - self.value
        absorbed = gathers or queries.shape[1] * excess < expansion
        return (self.absorbed if absorbed else self.expanded)(queries, rows["latent"], gathers)

    def expanded(self, queries: Tensor, latent_rows: Tensor, gathers: bool = False) -> Reader:
        """Keys and values of every head from the latent rows [S, K, rank + rope]."""
        latent, k_pe = latent_rows.split([self.rank, self.rope], dim=-1)
        k_nope, v = self.kv_b_proj(latent).unflatten(-1, (self.heads, -1)).split([self.nope, self.value], dim=-1)
        k = torch.cat([k_nope, k_pe[:, :, None].expand(-1, -1, self.heads, -1)], dim=-1)
        return Reader(queries, k, v, self.scale, gathers)

    def absorbed(self, queries: Tensor, latent_rows: Tensor, gathers: bool = False) -> Reader:
        """q̃ = W_ukᵀ q against the latent itself; W_uv is applied to what was read."""
        up_k, up_v = dense(self.kv_b_proj.weight).unflatten(0, (self.heads, -1)).split([self.nope, self.value], dim=1)
        q_nope, q_pe = queries.split([self.nope, self.rope], dim=-1)
        q = torch.cat([torch.einsum("slhn,hnr->slhr", q_nope, up_k), q_pe], dim=-1)
        shared = latent_rows[:, :, None]
        values = shared[..., : self.rank]
        return Reader(q, shared, values, self.scale, gathers, lambda out: torch.einsum("slhr,hvr->slhv", out, up_v))


def _joined(parts: list[Tensor]) -> Tensor:
    """Queries that were read one after the other [S, C, H, E]; without a copy where they were read at once."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def build_attention(config: ModelConfig, layer: int) -> Attention | CompressedAttention:
    if config.compression is not None:
        return CompressedAttention(config, layer)
    return (LatentAttention if config.attention.is_latent else GroupedQueryAttention)(config)
