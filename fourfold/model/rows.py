"""Rows: the memory of most layers, one entry per token and nothing that a later token changes."""

import math
from collections.abc import Sequence
from functools import lru_cache

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

Fields = dict[str, tuple[tuple[int, ...], torch.dtype | None]]  # name -> (shape of a row, dtype or None for the model's)


class Rows:
    """Append-only rows of S sequences, in buffers [at least S, at least the longest, ...] that grow by half."""

    def __init__(self, fields: Fields, sequences: int, dtype: torch.dtype, device: torch.device) -> None:
        self.lengths = [0] * sequences
        self._buffers = {
            name: torch.zeros(sequences, 0, *shape, dtype=own or dtype, device=device) for name, (shape, own) in fields.items()
        }

    @property
    def names(self) -> list[str]:
        return list(self._buffers)

    def append(self, lengths: Sequence[int], **rows: Tensor) -> None:
        if rows.keys() != self._buffers.keys() or len(lengths) != len(self.lengths):
            raise ValueError(f"this state keeps {sorted(self._buffers)} of {len(self.lengths)} sequences")
        slots = self.extend(lengths)
        for name, values in rows.items():  # one operation each, however many sequences
            buffer = self._buffers[name]
            buffer.flatten(0, 1).index_copy_(0, slots, values.detach().to(buffer.dtype))

    def extend(self, lengths: Sequence[int]) -> Tensor:
        """Make room for rows that the caller writes: where they go [N] in each field's buffers [S · room, ...], laid end to end."""
        starts, self.lengths = self.lengths, [old + new for old, new in zip(self.lengths, lengths, strict=True)]
        self._reserve()
        buffer = next(iter(self._buffers.values()))  # all have the same room
        return _slots(tuple(starts), tuple(lengths), buffer.shape[1], buffer.device)

    def read(self, name: str) -> Tensor:
        return self._buffers[name][: len(self.lengths), : max(self.lengths, default=0)]

    def truncate(self, lengths: Sequence[int]) -> None:
        for sequence, (new, old) in enumerate(zip(lengths, self.lengths, strict=True)):
            if not 0 <= new <= old:
                raise ValueError(f"sequence {sequence} holds {old} tokens and cannot be cut to {new}")
        self.lengths = list(lengths)

    def fork(self, sequences: Sequence[int]) -> "Rows":
        copy = object.__new__(Rows)
        copy.lengths = [self.lengths[s] for s in sequences]
        copy._buffers = {name: self.read(name)[list(sequences)] for name in self._buffers}
        return copy

    def join(self, other: "Rows") -> None:
        """Copy another state's sequences in behind one's own."""
        first, self.lengths = len(self.lengths), [*self.lengths, *other.lengths]
        self._reserve()
        for name, buffer in self._buffers.items():
            rows = other.read(name)
            buffer[first : len(self.lengths), : rows.shape[1]] = rows

    def leave(self, sequence: int) -> None:
        """Forget a sequence; the last one takes its place. Memory that is far too large for the others is given back."""
        *lengths, moved = self.lengths
        if sequence < len(lengths):
            for buffer in self._buffers.values():
                buffer[sequence, :moved] = buffer[len(lengths), :moved]
            lengths[sequence] = moved
        self.lengths = lengths
        longest = max(lengths, default=0)
        for name, buffer in self._buffers.items():
            if buffer.shape[0] * buffer.shape[1] > 4 * len(lengths) * max(longest, 64):
                self._buffers[name] = buffer[: len(lengths), :longest].clone()

    def keep_newest(self, count: int) -> None:
        """Drop all but the newest rows of each sequence, and the memory that the others took."""
        starts = [max(length - count, 0) for length in self.lengths]
        old, self.lengths = self.lengths, [length - start for length, start in zip(self.lengths, starts, strict=True)]
        for name, buffer in self._buffers.items():
            room = buffer.new_zeros(len(old), max(self.lengths, default=0), *buffer.shape[2:])
            for sequence, (start, stop) in enumerate(zip(starts, old, strict=True)):
                room[sequence, : stop - start] = buffer[sequence, start:stop]
            self._buffers[name] = room

    def snapshot(self, sequence: int, start: int, stop: int) -> bytes:
        if not 0 <= start <= stop <= self.lengths[sequence]:
            raise ValueError(f"sequence {sequence} holds {self.lengths[sequence]} tokens, not rows {start} to {stop}")
        return to_bytes({name: buffer[sequence, start:stop].contiguous() for name, buffer in self._buffers.items()})

    def restore(self, sequence: int, page: bytes) -> None:
        rows = from_bytes(page)
        start, count = self.lengths[sequence], len(next(iter(rows.values())))
        self.lengths = [length + count if s == sequence else length for s, length in enumerate(self.lengths)]
        self._reserve()
        for name, buffer in self._buffers.items():
            buffer[sequence, start : start + count] = rows[name].to(buffer.device)

    def resumable(self, sequence: int) -> int:
        return self.lengths[sequence]

    def bytes_per_token(self) -> int:
        return sum(buffer.element_size() * math.prod(buffer.shape[2:]) for buffer in self._buffers.values())

    def fixed_bytes(self) -> int:
        return 0

    def _reserve(self) -> None:
        """Make room for as many sequences as there are, and as many rows as the longest has."""
        count, longest = len(self.lengths), max(self.lengths, default=0)
        for name, old in self._buffers.items():
            if count > old.shape[0] or longest > old.shape[1]:
                sequences = old.shape[0] if count <= old.shape[0] else max(count, old.shape[0] * 3 // 2)
                rows = old.shape[1] if longest <= old.shape[1] else max(longest, old.shape[1] * 3 // 2, 64)
                room = old.new_zeros(sequences, rows, *old.shape[2:])
                room[: old.shape[0], : old.shape[1]] = old
                self._buffers[name] = room


@lru_cache(maxsize=8)
def _slots(starts: tuple[int, ...], lengths: tuple[int, ...], room: int, device: torch.device) -> Tensor:
    """Where new rows go in [S · room], flat: the same for most states of a forward, so it is worked out once."""
    begins = [s * room + start for s, start in enumerate(starts)]
    return torch.cat([torch.arange(begin, begin + n) for begin, n in zip(begins, lengths, strict=True)]).to(device)
