"""Blocks of tokens compressed to one vector each (V4 2606.19348, section 2.3.1, equations 9-12, and 2.3.2, equations 20-23).

Every token offers, per channel, a value and a gate; a block's entry is their mean under a softmax of the gates over its tokens:

    C = x W_kv,  Z = x W_gate + ape[place in the block],  entry_b = RoPE_b(RMSNorm(Σ_{t in b} softmax_t(Z_t) ⊙ C_t))

Where blocks overlap (CSA), a token makes two offers: one half of the channels goes to the next block, the other to its own, so that
an entry pools twice as many tokens as it stands for. It is rotated at the position of its block's first token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fourfold.model.block_state import BlockState
from fourfold.model.inputs import Batch, Context, NewBlocks
from fourfold.model.rope import rotate_tail, tables
from fourfold.ops.linear import Linear, dense, linear
from fourfold.ops.norm import RMSNorm


@dataclass
class Blocks:
    """All finished blocks of S sequences: `rows` [S, B, ...] by name, the place where each ends [S, B], how many there are [S]."""

    rows: dict[str, Tensor]
    ends: Tensor
    counts: Tensor

    @classmethod
    def made(cls, rows: dict[str, Tensor], new: NewBlocks) -> "Blocks":
        """Those that one pass without a memory has made: rows [M, ...], sequence after sequence."""
        ends, *padded = (pad_sequence(y.split(new.lengths), batch_first=True) for y in (new.ends, *rows.values()))
        return cls(dict(zip(rows, padded, strict=True)), ends, torch.tensor(new.lengths, device=ends.device))

    @classmethod
    def remembered(cls, names: list[str], state: BlockState) -> "Blocks":
        ends = state.read("end")
        return cls({name: state.read(name) for name in names}, ends, torch.tensor(state.block_lengths, device=ends.device))

    def visible(self, queries: slice, context: Context) -> Tensor:
        """[S, C, B] bool: blocks that have ended at or before each query, in its document: b < floor((t + 1) / ratio)."""
        there = torch.arange(self.ends.shape[1], device=self.ends.device) < self.counts[:, None]
        return context.sees(queries, self.ends) & there[:, None]


def new_blocks(batch: Batch, context: Context, ratio: int, turns: Tensor) -> NewBlocks:
    """The blocks that this chunk finishes. They begin with their document, so that packed documents are compressed alone."""
    last = ((context.within + 1) % ratio == 0).nonzero()[:, 0]
    sizes = torch.tensor(batch.lengths, device=last.device)
    owners = torch.arange(batch.sequences, device=last.device).repeat_interleave(sizes)[last]
    lengths = tuple(torch.bincount(owners, minlength=batch.sequences).tolist())
    rotary = tables(batch.positions[0][last] - (ratio - 1), turns)
    return NewBlocks(lengths, owners, batch.unpad(context.queries)[last], context.within[last] >= ratio, rotary)


class Compressor(nn.Module):
    """Offers of tokens, and entries of blocks, of `width` channels. Pooling is in fp32, as in the released code."""

    def __init__(self, hidden: int, width: int, ratio: int, overlaps: bool, eps: float) -> None:
        super().__init__()
        self.width, self.ratio, self.overlaps = width, ratio, overlaps
        wide = width * (1 + overlaps)
        self.wkv = Linear(hidden, wide)
        self.wgate = Linear(hidden, wide)
        self.ape = nn.Parameter(torch.zeros(ratio, wide))
        self.norm = RMSNorm(width, eps)

    @property
    def reach(self) -> int:
        """How many tokens before the next one may still belong to a block that it finishes."""
        return self.ratio * (1 + self.overlaps) - 1

    @property
    def offer_shape(self) -> tuple[int, int]:
        return 2, self.width * (1 + self.overlaps)

    def offers(self, x: Tensor) -> Tensor:
        """Values and gates of tokens: x [N, d] -> fp32 [N, 2, width or 2 · width]."""
        x = x.float()
        return torch.stack([linear(x, dense(w).float()) for w in (self.wkv.weight, self.wgate.weight)], dim=1)

    def entries(self, offers: Tensor, columns: Tensor, new: NewBlocks, dtype: torch.dtype) -> Tensor:
        """The new blocks' entries [M, width]. offers [S, R, 2, ...]; `columns` [M]: where in it each block's last token stands."""
        slots = columns[:, None] + torch.arange(1 - self.ratio, 1, device=columns.device)  # [M, ratio]
        values, gates = self._pick(offers[..., -self.width :], slots, new).unbind(2)
        gates = gates + self.ape[:, -self.width :].float()
        if self.overlaps:
            earlier, wishes = self._pick(offers[..., : self.width], slots - self.ratio, new).unbind(2)
            wishes = (wishes + self.ape[:, : self.width].float()).masked_fill(~new.follows[:, None, None], -torch.inf)
            values, gates = torch.cat([earlier, values], dim=1), torch.cat([wishes, gates], dim=1)
        pooled = (values * gates.softmax(dim=1)).sum(dim=1)
        return rotate_tail(self.norm(pooled.to(dtype)), *new.rotary)

    def _pick(self, offers: Tensor, slots: Tensor, new: NewBlocks) -> Tensor:
        """[M, ratio, 2, width]: offers [S, R, 2, width] at some slots of each block's sequence, anything before the first."""
        places = new.sequences[:, None] * offers.shape[1] + slots.clamp(min=0)
        return offers.flatten(0, 1).index_select(0, places.flatten()).unflatten(0, slots.shape)
