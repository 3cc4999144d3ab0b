"""What a model remembers of its sequences, behind one protocol.

Every layer kind so far remembers rows only: one entry per token and nothing that a later token changes. (Engram's convolution
tail is no exception: its values follow from the tokens, so the gates alone are kept, see engram.py.) Such a memory can be cut at
any length, copied, and saved page by page, which is what speculation, preemption and a prefix store ask of it.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import Tensor

Fields = dict[str, tuple[tuple[int, ...], torch.dtype | None]]  # name -> (shape of a row, dtype or None for the model's)


class LayerState(Protocol):
    """The contract of every layer's memory. S sequences, each with its own length."""

    lengths: list[int]

    def append(self, lengths: Sequence[int], **rows: Tensor) -> None:
        """Add `lengths[s]` rows to sequence s; each field's rows come flat [N, ...] in sequence order."""

    def read(self, name: str) -> Tensor:
        """[S, longest, ...]; rows past a sequence's own length hold anything finite."""

    def truncate(self, lengths: Sequence[int]) -> None:
        """Forget all after the given lengths, as if it had never been appended."""

    def fork(self, sequences: Sequence[int]) -> "LayerState":
        """An independent copy made of the sequences named (repeats allowed)."""

    def snapshot(self, sequence: int, start: int, stop: int) -> bytes:
        """The rows [start, stop) of a sequence as bytes that `restore` understands, here or elsewhere."""

    def restore(self, sequence: int, page: bytes) -> None:
        """Append a snapshot to a sequence."""

    def bytes_per_token(self) -> int:
        """What one more token of one sequence costs."""


class Rows:
    """Append-only rows of S sequences in buffers [S, capacity, ...] that grow by half."""

    def __init__(self, fields: Fields, sequences: int, dtype: torch.dtype, device: torch.device) -> None:
        self.lengths = [0] * sequences
        self._buffers = {
            name: torch.zeros(sequences, 0, *shape, dtype=own or dtype, device=device) for name, (shape, own) in fields.items()
        }

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

    def bytes_per_token(self) -> int:
        return sum(buffer.element_size() * math.prod(buffer.shape[2:]) for buffer in self._buffers.values())

    def _reserve(self, length: int) -> None:
        for name, old in self._buffers.items():
            if length > old.shape[1]:
                room = old.new_zeros(old.shape[0], max(length, old.shape[1] * 3 // 2, 64), *old.shape[2:])
                room[:, : old.shape[1]] = old
                self._buffers[name] = room


INPUT_FIELDS: Fields = {"tokens": ((), torch.long), "documents": ((), torch.long), "modality": ((), torch.uint8)}


LayerStates = dict[str, LayerState]  # a layer's states: "attention", and "engram" where it has one


class Cache:
    """The memory of one model for S sequences: the inputs themselves, and the states of each layer."""

    def __init__(self, layers: list[dict[str, Fields]], sequences: int, dtype: torch.dtype, device: torch.device) -> None:
        self.inputs = Rows(INPUT_FIELDS, sequences, torch.long, device)
        self.layers: list[LayerStates] = [
            {name: Rows(fields, sequences, dtype, device) for name, fields in layer.items()} for layer in layers
        ]

    @property
    def lengths(self) -> list[int]:
        """Tokens that each sequence has been given."""
        return list(self.inputs.lengths)

    def states(self) -> list[LayerState]:
        return [self.inputs, *(rows for layer in self.layers for rows in layer.values())]

    def truncate(self, lengths: int | Sequence[int]) -> None:
        """Cut every sequence to a length (one for all, or one each)."""
        wanted = [lengths] * len(self.lengths) if isinstance(lengths, int) else lengths
        for state in self.states():
            state.truncate(wanted)

    def fork(self, sequences: Sequence[int] | None = None) -> "Cache":
        """An independent copy, of all sequences or of those named."""
        chosen = range(len(self.lengths)) if sequences is None else sequences
        copy = object.__new__(Cache)
        copy.inputs = self.inputs.fork(chosen)
        copy.layers = [{name: rows.fork(chosen) for name, rows in layer.items()} for layer in self.layers]
        return copy

    def snapshot(self, sequence: int, start: int, stop: int) -> list[bytes]:
        """One page of a sequence, a piece per state."""
        return [state.snapshot(sequence, start, stop) for state in self.states()]

    def restore(self, sequence: int, page: list[bytes]) -> None:
        for state, piece in zip(self.states(), page, strict=True):
            state.restore(sequence, piece)

    def bytes_per_token(self) -> int:
        """Bytes that one more token of one sequence costs."""
        return sum(state.bytes_per_token() for state in self.states())
