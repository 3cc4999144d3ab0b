"""Rows: the memory of most layers, one entry per token and nothing that a later token changes."""

import math
from collections.abc import Sequence

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

Fields = dict[str, tuple[tuple[int, ...], torch.dtype | None]]  # name -> (shape of a row, dtype or None for the model's)


class Rows:
    """Append-only rows of S sequences in buffers [S, capacity, ...] that grow by half."""

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
        starts, self.lengths = self.lengths, [old + new for old, new in zip(self.lengths, lengths, strict=True)]
        self._reserve(max(self.lengths, default=0))
        for name, values in rows.items():
            buffer = self._buffers[name]
            for sequence, chunk in enumerate(values.detach().split(list(lengths))):
                buffer[sequence, starts[sequence] : starts[sequence] + len(chunk)] = chunk

    def read(self, name: str) -> Tensor:
        return self._buffers[name][:, : max(self.lengths, default=0)]

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

    def keep_newest(self, count: int) -> None:
        """Drop all but the newest rows of each sequence, and the memory that the others took."""
        starts = [max(length - count, 0) for length in self.lengths]
        old, self.lengths = self.lengths, [length - start for length, start in zip(self.lengths, starts, strict=True)]
        for name, buffer in self._buffers.items():
            room = buffer.new_zeros(buffer.shape[0], max(self.lengths), *buffer.shape[2:])
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
        self.lengths[sequence] += count
        self._reserve(self.lengths[sequence])
        for name, buffer in self._buffers.items():
            buffer[sequence, start : start + count] = rows[name].to(buffer.device)

    def resumable(self, sequence: int) -> int:
        return self.lengths[sequence]

    def bytes_per_token(self) -> int:
        return sum(buffer.element_size() * math.prod(buffer.shape[2:]) for buffer in self._buffers.values())

    def _reserve(self, length: int) -> None:
        for name, old in self._buffers.items():
            if length > old.shape[1]:
                room = old.new_zeros(old.shape[0], max(length, old.shape[1] * 3 // 2, 64), *old.shape[2:])
                room[:, : old.shape[1]] = old
                self._buffers[name] = room
