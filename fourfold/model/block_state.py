"""What a layer with compressed attention remembers (V4 2606.19348, section 2.3): the newest tokens, and blocks of all.

For each finished block there is one row, for good. Of single tokens it keeps what is still needed: raw rows as far back as the
window reaches, and what the compressors have made of the tokens of the unfinished block (and, where blocks overlap, of the last
one). The rest is forgotten, which is the point of compressing: a token then costs the bytes of a block divided by its tokens.

The price: cut back by more than SLACK tokens, a sequence lacks the rows that its new end would need. It keeps its blocks, says so
through `resumable`, and the model is given those tokens once more. (The paper's section 3.5.2 weighs the same for caches on disk:
keep all raw rows, keep them now and then, or compute them again.)
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

from fourfold.model.rows import Fields, Rows

SLACK = 64  # how far a sequence may be cut back without computing anything again: further than speculation ever goes


@dataclass(frozen=True)
class BlockLayout:
    """`recent`: rows per token, each group with the number of tokens for which it is needed; `blocks`: rows per finished block of
    `ratio` tokens (0: there are no blocks)."""

    recent: tuple[tuple[int, Fields], ...]
    blocks: Fields
    ratio: int

    @property
    def rows(self) -> Fields:
        """The fields of a block, `end` among them: the place of its last token, by which it is cut."""
        return {"end": ((), torch.long), **self.blocks}

    @property
    def kept(self) -> tuple[tuple[int, Fields], ...]:
        """How many tokens the rows of each group are kept for."""
        return tuple((reach + SLACK, fields) for reach, fields in self.recent)


class Recent:
    """Rows of the newest tokens of S sequences, at least the last `reach` of each while it only grows."""

    def __init__(self, fields: Fields, reach: int, sequences: int, dtype: torch.dtype, device: torch.device) -> None:
        self.names, self.reach, self.lengths = set(fields), reach, [0] * sequences
        self.rows = Rows(fields, sequences, dtype, device)

    def first(self, sequence: int) -> int:
        """The place of the oldest token whose row is still there."""
        return self.lengths[sequence] - self.rows.lengths[sequence]

    def whole(self, sequence: int) -> bool:
        return self.first(sequence) <= max(self.lengths[sequence] - self.reach, 0)

    def append(self, lengths: Sequence[int], **rows: Tensor) -> None:
        """What is too old is forgotten first, so that all of a chunk can be saved by pages once it has been read."""
        self._trim()
        self.rows.append(lengths, **rows)
        self.lengths = [old + new for old, new in zip(self.lengths, lengths, strict=True)]

    def before(self, name: str, count: int) -> Tensor:
        """[S, count, ...]: the rows just before each sequence's next token, anything finite where there are none."""
        rows = self.rows.read(name)
        if not rows.shape[1]:
            return rows.new_zeros(rows.shape[0], count, *rows.shape[2:])
        ends = torch.tensor(self.rows.lengths, device=rows.device)
        slots = (ends[:, None] + torch.arange(-count, 0, device=rows.device)).clamp(min=0)
        return rows[torch.arange(len(rows), device=rows.device)[:, None], slots]

    def truncate(self, lengths: Sequence[int]) -> None:
        firsts = [self.first(s) for s in range(len(self.lengths))]
        self.rows.truncate([max(new - first, 0) for new, first in zip(lengths, firsts, strict=True)])
        self.lengths = list(lengths)

    def fork(self, sequences: Sequence[int]) -> "Recent":
        copy = object.__new__(Recent)
        copy.names, copy.reach, copy.lengths = self.names, self.reach, [self.lengths[s] for s in sequences]
        copy.rows = self.rows.fork(sequences)
        return copy

    def join(self, other: "Recent") -> None:
        self.rows.join(other.rows)
        self.lengths = [*self.lengths, *other.lengths]

    def leave(self, sequence: int) -> None:
        self.rows.leave(sequence)
        *lengths, moved = self.lengths
        self.lengths = [moved if s == sequence else length for s, length in enumerate(lengths)]

    def snapshot(self, sequence: int, start: int, stop: int) -> dict[str, Tensor]:
        """The rows of [start, stop) that are still there: a run that ends at `stop`, or nothing."""
        first = self.first(sequence)
        begin = min(max(start, first), stop) - first
        return {name: self.rows.read(name)[sequence, max(begin, 0) : max(stop - first, 0)].contiguous() for name in self.names}

    def restore(self, sequence: int, count: int, page: dict[str, Tensor]) -> None:
        """Append `count` tokens of which the last have rows; if not all do, the run starts anew."""
        rows = {name: page[name] for name in self.names}
        there = len(next(iter(rows.values())))
        kept = self.rows.lengths.copy()
        if there < count:
            kept[sequence] = 0
            self.rows.truncate(kept)
        self._trim()
        lengths = [there if s == sequence else 0 for s in range(len(kept))]
        self.rows.append(lengths, **{name: row.to(self.rows.read(name).device) for name, row in rows.items()})
        self.lengths = [length + count if s == sequence else length for s, length in enumerate(self.lengths)]

    def fixed_bytes(self) -> int:
        return (self.reach + SLACK) * self.rows.bytes_per_token()

    def _trim(self) -> None:
        if max(self.rows.lengths, default=0) > self.reach + 2 * SLACK:
            self.rows.keep_newest(self.reach + SLACK)


class BlockState:
    """The LayerState of S sequences with blocks. Tokens come by `append`, the blocks that they finish by `append_blocks`."""

    def __init__(self, layout: BlockLayout, sequences: int, dtype: torch.dtype, device: torch.device) -> None:
        self.ratio = layout.ratio
        self.recent = [Recent(fields, reach, sequences, dtype, device) for reach, fields in layout.recent]
        self.blocks = Rows(layout.rows, sequences, dtype, device)

    @property
    def lengths(self) -> list[int]:
        return self.recent[0].lengths

    def append(self, lengths: Sequence[int], **rows: Tensor) -> None:
        for group in self.recent:
            group.append(lengths, **{name: rows[name] for name in group.names})

    def append_blocks(self, lengths: Sequence[int], **rows: Tensor) -> None:
        """Add `lengths[s]` blocks to sequence s, rows flat in sequence order; they belong to tokens of the same forward."""
        if any(lengths):
            self.blocks.append(lengths, **rows)

    def before(self, name: str, count: int) -> Tensor:
        """[S, count, ...]: rows of the tokens just before the next one, as many as the layout promises."""
        return next(group for group in self.recent if name in group.names).before(name, count)

    def read(self, name: str) -> Tensor:
        """[S, blocks, ...]: what each finished block has left; `block_lengths` says how many each sequence has."""
        return self.blocks.read(name)

    @property
    def block_lengths(self) -> list[int]:
        return self.blocks.lengths

    def truncate(self, lengths: Sequence[int]) -> None:
        for sequence, (new, old) in enumerate(zip(lengths, self.lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"sequence {sequence} holds {old} tokens and cannot be cut to {new}")
        pairs = enumerate(zip(lengths, self.lengths, strict=True))
        self.blocks.truncate([self.blocks.lengths[s] if new == old else self._blocks_within(s, new) for s, (new, old) in pairs])
        for group in self.recent:
            group.truncate(lengths)

    def fork(self, sequences: Sequence[int]) -> "BlockState":
        copy = object.__new__(BlockState)
        copy.ratio, copy.blocks = self.ratio, self.blocks.fork(sequences)
        copy.recent = [group.fork(sequences) for group in self.recent]
        return copy

    def join(self, other: "BlockState") -> None:
        self.blocks.join(other.blocks)
        for mine, theirs in zip(self.recent, other.recent, strict=True):
            mine.join(theirs)

    def leave(self, sequence: int) -> None:
        self.blocks.leave(sequence)
        for group in self.recent:
            group.leave(sequence)

    def snapshot(self, sequence: int, start: int, stop: int) -> bytes:
        """The blocks that end in [start, stop), and of its tokens those rows that are not forgotten."""
        if not 0 <= start <= stop <= self.lengths[sequence]:
            raise ValueError(f"sequence {sequence} holds {self.lengths[sequence]} tokens, not rows {start} to {stop}")
        blocks = self.blocks.snapshot(sequence, self._blocks_within(sequence, start), self._blocks_within(sequence, stop))
        page = {f"block.{name}": rows for name, rows in from_bytes(blocks).items()}
        page["block.end"] -= start
        for group in self.recent:
            page |= group.snapshot(sequence, start, stop)
        return to_bytes(page | {"count": torch.tensor(stop - start)})

    def restore(self, sequence: int, page: bytes) -> None:
        rows = from_bytes(page)
        blocks = {name.removeprefix("block."): row for name, row in rows.items() if name.startswith("block.")}
        blocks["end"] += self.lengths[sequence]
        self.blocks.restore(sequence, to_bytes(blocks))
        for group in self.recent:
            group.restore(sequence, int(rows["count"]), rows)

    def resumable(self, sequence: int) -> int:
        return self.lengths[sequence] if all(group.whole(sequence) for group in self.recent) else 0

    def bytes_per_token(self) -> float:
        """Of blocks alone: what is kept of single tokens does not grow, see `fixed_bytes`."""
        return self.blocks.bytes_per_token() / self.ratio if self.ratio else 0.0

    def fixed_bytes(self) -> int:
        """What a sequence costs however long it is."""
        return sum(group.fixed_bytes() for group in self.recent)

    def _blocks_within(self, sequence: int, length: int) -> int:
        """How many blocks of a sequence end within its first tokens."""
        count = self.blocks.lengths[sequence]
        return int((self.blocks.read("end")[sequence, :count] < length).sum())
