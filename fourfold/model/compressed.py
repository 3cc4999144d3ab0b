"""Compressed attention of the released V4 (2606.19348, section 2.3): the newest tokens as they are, older ones in blocks.

    c_q = RMSNorm(W_qa x);  q_h = RoPE_t(RMS(W_qb c_q));  c_t = RoPE_t(RMSNorm(W_kv x)), key and value of all heads
    p ∝ exp(q·c / √D) over the window {c_s : t - s < n_win} and the blocks {entry_b} together, with a sink for each head
    o = RoPE_{-t}(Σ p c);  y = W_ob [W_oa,g o_g]_g, the heads in groups g

CSA (section 2.3.1) reads the blocks that an indexer chooses, HCA (section 2.3.2) all of them, and a layer of ratio 0 none. Values
carry the rotation of their keys; turned back at the query's position, what was read depends on distances alone. Blocks within the
window are not left out: the newest tokens are seen both raw and compressed.

The released code rotates index queries and keys by a Hadamard matrix and rounds them to fp4, and other channels to fp8, as they
were trained. The rotation changes no product, and the rounding is left out here.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.model.block_state import BlockLayout, BlockState
from fourfold.model.compressor import Blocks, Compressor
from fourfold.model.inputs import Context
from fourfold.model.rope import rotate_tail
from fourfold.model.selection import Chooser, Selection, chunks
from fourfold.ops.linear import Linear, dense
from fourfold.ops.norm import RMSNorm
from fourfold.ops.shared import KeySet, attend_shared

PART = 128  # queries read at once, at least where a window is no longer: each part sees a window's length of keys more


class BlockIndexer(Chooser):
    """Scores blocks by index keys that a compressor of its own makes (section 2.3.1, equations 13-17).

    Unlike V3.2's, it turns the last channels, in pairs (2j, 2j+1), and by the layer's own frequencies.
    """

    def __init__(self, config: ModelConfig, ratio: int) -> None:
        super().__init__(config)
        self.wq_b = Linear(config.attention.q_lora_rank, self.heads * self.width)
        self.weights_proj = Linear(config.hidden_size, self.heads)
        self.compressor = Compressor(config.hidden_size, self.width, ratio, overlaps=True, eps=config.rms_norm_eps)

    def forward(self, x: Tensor, latent: Tensor, blocks: Blocks, context: Context) -> Iterator[Selection]:
        """x [N, d]; latent [N, q_lora_rank]. The selections name blocks."""
        keys = blocks.rows["index_key"]
        everything = not context.sparse or keys.shape[1] <= self.topk
        if not keys.shape[1] or (everything and not context.wants_mass):
            yield Selection(slice(0, context.batch.longest))
            return
        yield from self.selections(
            self.queries(x, latent, context), keys, lambda part: blocks.visible(part, context), context, everything
        )

    def _rotate(self, x: Tensor, context: Context) -> Tensor:
        return rotate_tail(x, *context.rotary["compressed"])


class CompressedAttention(nn.Module):
    """One layer's attention: a window of raw tokens, and blocks of `ratio` tokens where that is not 0."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        sizes, compression, d = config.attention, config.compression, config.hidden_size
        self.heads, self.width, self.rank = sizes.num_attention_heads, sizes.head_dim, sizes.q_lora_rank
        self.window, self.groups, self.ratio = compression.sliding_window, compression.o_groups, compression.compress_ratios[layer]
        self.scale, self.eps = self.width**-0.5, config.rms_norm_eps
        self.q_a_proj = Linear(d, self.rank)
        self.q_a_layernorm = RMSNorm(self.rank, self.eps)
        self.q_b_proj = Linear(self.rank, self.heads * self.width)
        self.kv_proj = Linear(d, self.width)
        self.kv_norm = RMSNorm(self.width, self.eps)
        self.sinks = nn.Parameter(torch.zeros(self.heads))
        self.o_a_proj = Linear(self.heads * self.width // self.groups, self.groups * compression.o_lora_rank)
        self.o_b_proj = Linear(self.groups * compression.o_lora_rank, d)
        chooses = self.ratio == compression.csa_ratio
        self.compressor = Compressor(d, self.width, self.ratio, chooses, self.eps) if self.ratio else None
        self.indexer = BlockIndexer(config, self.ratio) if chooses else None

    def compressors(self) -> dict[str, Compressor]:
        """By the name of the rows that they make."""
        own = {} if self.compressor is None else {"entry": self.compressor}
        return own if self.indexer is None else own | {"index_key": self.indexer.compressor}

    def fields(self) -> BlockLayout:
        """What a layer state keeps: vectors as far back as the window, offers as far back as a block, and the entries."""
        made = self.compressors()
        recent = [(self.window - 1, {"vector": ((self.width,), None)})]
        if made:
            offers = {f"{name}_offer": (compressor.offer_shape, torch.float32) for name, compressor in made.items()}
            recent.append((self.compressor.reach, offers))
        return BlockLayout(tuple(recent), {name: ((c.width,), None) for name, c in made.items()}, self.ratio)

    def forward(self, x: Tensor, context: Context, state: BlockState | None = None) -> Tensor:
        """x [N, d] -> [N, d]; adds this chunk to `state` and reads from all that is visible of it."""
        batch, rotary = context.batch, context.rotary["compressed" if self.ratio else "attention"]
        latent = self.q_a_layernorm(self.q_a_proj(x))
        queries = self.q_b_proj(latent).unflatten(-1, (self.heads, self.width))
        queries = F.rms_norm(queries.float(), (self.width,), eps=self.eps).to(x.dtype)
        vectors = rotate_tail(self.kv_norm(self.kv_proj(x)), *rotary)
        window, blocks = self.remember(x, vectors, context, state)
        padded = batch.pad(rotate_tail(queries, *rotary))
        read = [self.read(padded, window, blocks, selection, context) for selection in self.select(x, latent, blocks, context)]
        out = rotate_tail(batch.unpad(torch.cat(read, dim=1)), rotary[0], -rotary[1])
        return self.o_b_proj(self.by_group(out.flatten(1)))

    def by_group(self, out: Tensor) -> Tensor:
        """W_oa: out [N, H · D] -> [N, groups · o_lora_rank], the heads of each group by a matrix of their own."""
        weights = dense(self.o_a_proj.weight).unflatten(0, (self.groups, -1))
        return torch.einsum("ngi,goi->ngo", out.unflatten(1, (self.groups, -1)), weights).flatten(1)

    def remember(self, x: Tensor, vectors: Tensor, context: Context, state: BlockState | None) -> tuple[Tensor, Blocks | None]:
        """The raw vectors [S, back + L, D], with those that the window reaches back to, and all finished blocks."""
        batch, made = context.batch, self.compressors()
        rows = {f"{name}_offer": c.offers(x.detach() if name == "index_key" else x) for name, c in made.items()}
        rows["vector"] = vectors
        known = {name: self.with_past(name, row, context, state) for name, row in rows.items()}
        blocks = self.compress(known, made, context, state, x.dtype) if made else None
        if state is not None:
            state.append(batch.lengths, **rows)
        return known["vector"], blocks

    def with_past(self, name: str, rows: Tensor, context: Context, state: BlockState | None) -> Tensor:
        """This chunk's rows [N, ...] behind the remembered ones that may still be needed: [S, back + L, ...]."""
        rows, back = context.batch.pad(rows), self.back(name, context, state)
        return rows if not back else torch.cat([state.before(name, back), rows], dim=1)

    def back(self, name: str, context: Context, state: BlockState | None) -> int:
        if state is None:
            return 0
        return min(self.window - 1 if name == "vector" else self.compressor.reach, int(context.past.max()))

    def compress(
        self, known: dict[str, Tensor], made: dict[str, Compressor], context: Context, state: BlockState | None, dtype: torch.dtype
    ) -> Blocks:
        new, entries = context.blocks[self.ratio], {}
        for name, compressor in made.items():
            offers = known[f"{name}_offer"]
            first = context.past - (offers.shape[1] - context.batch.longest)  # the place of column 0
            entries[name] = compressor.entries(offers, new.ends - first[new.sequences], new, dtype)
        if state is None:
            return Blocks.made(entries, new)
        state.append_blocks(new.lengths, end=new.ends, **entries)
        return Blocks.remembered(list(made), state)

    def select(self, x: Tensor, latent: Tensor, blocks: Blocks | None, context: Context) -> Iterator[Selection]:
        if self.indexer is not None:
            yield from self.indexer(x, latent, blocks, context)
        else:
            yield Selection(slice(0, context.batch.longest))

    def read(self, queries: Tensor, window: Tensor, blocks: Blocks | None, selection: Selection, context: Context) -> Tensor:
        """The outputs [S, C, H, D] of the selected queries, still rotated, a part of them at a time."""
        step = max(self.window, PART)
        keys = self.window + step + (0 if blocks is None else blocks.ends.shape[1])
        parts = chunks(selection.queries.stop - selection.queries.start, queries.shape[0] * self.heads * keys, step)
        return torch.cat([self._read(queries, window, blocks, selection.part(part), context) for part in parts], dim=1)

    def _read(self, queries: Tensor, window: Tensor, blocks: Blocks | None, selection: Selection, context: Context) -> Tensor:
        sets = [self.in_window(window, selection.queries, context)]
        if blocks is not None and blocks.ends.shape[1]:
            sets.append(self.in_blocks(blocks, selection, context))
        out, odds = attend_shared(queries[:, selection.queries], sets, self.sinks, self.scale)
        if context.wants_mass and self.indexer is not None and len(sets) == 2:
            mass = odds[1].detach().mean(2)
            context.layer_trace.extend("attention_mass", mass / mass.sum(-1, keepdim=True).clamp(min=1e-30))
        return out

    def in_window(self, window: Tensor, queries: slice, context: Context) -> KeySet:
        """The raw vectors that some of the queries reach, and which of them each does: the last n_win, its own included."""
        back = window.shape[1] - context.batch.longest
        columns = slice(max(back + queries.start - self.window + 1, 0), back + queries.stop)
        places = context.past[:, None] - back + torch.arange(columns.start, columns.stop, device=window.device)
        near = places[:, None] > context.queries[:, queries, None] - self.window
        return window[:, columns], context.sees(queries, places) & near

    def in_blocks(self, blocks: Blocks, selection: Selection, context: Context) -> KeySet:
        """The entries that the selection names: gathered for each query where they are few of many, else under a mask."""
        entries = blocks.rows["entry"]
        if selection.indices is not None and self.indexer.gathers(entries.shape[1], context):
            sequence = torch.arange(len(entries), device=entries.device)[:, None, None]
            return entries[sequence, selection.indices], selection.valid
        return entries, selection.mask(blocks.visible(selection.queries, context), entries.shape[1])
