"""What a model remembers of its sequences, behind one protocol.

Most layers remember rows only: one entry per token and nothing that a later token changes. (Engram's convolution tail is no
exception: its values follow from the tokens, so the gates alone are kept, see engram.py.) Such a memory can be cut at any length,
copied, and saved page by page, which is what speculation, preemption and a prefix store ask of it.

Layers that compress (block_state.py) forget: of old tokens they keep blocks alone. They too can be cut at any length, but after a
deep cut they cannot go on from there; `Cache.rewind` then says which tokens the model has to be given once more.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from fourfold.model.block_state import BlockLayout, BlockState
from fourfold.model.inputs import Batch, document_starts, is_read
from fourfold.model.rows import Fields, Rows

PIECE = 2048  # tokens of a sequence that are given again at once, after a deep cut


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

    def join(self, other: Any) -> None:
        """Copy the sequences of another state of the same kind in behind one's own."""

    def leave(self, sequence: int) -> None:
        """Forget a sequence; the last one takes its place."""

    def snapshot(self, sequence: int, start: int, stop: int) -> bytes:
        """The rows [start, stop) of a sequence as bytes that `restore` understands, here or elsewhere."""

    def restore(self, sequence: int, page: bytes) -> None:
        """Append a snapshot to a sequence."""

    def resumable(self, sequence: int) -> int:
        """The longest prefix of what a sequence holds that it can go on from: all of it, unless rows were forgotten."""

    def bytes_per_token(self) -> float:
        """What one more token of one sequence costs."""

    def fixed_bytes(self) -> int:
        """What a sequence costs however long it is."""


INPUT_FIELDS: Fields = {"tokens": ((), torch.long), "documents": ((), torch.long), "modality": ((), torch.uint8)}
PLACED_FIELDS: Fields = INPUT_FIELDS | {"positions": ((3,), torch.int32)}  # where positions are no mere places in a document


Layout = Fields | BlockLayout
LayerStates = dict[str, LayerState]  # a layer's states: "attention", and "engram" where it has one


def new_state(layout: Layout, sequences: int, dtype: torch.dtype, device: torch.device) -> LayerState:
    """An empty state of the kind that a layer asks for."""
    kind = BlockState if isinstance(layout, BlockLayout) else Rows
    return kind(layout, sequences, dtype, device)


class Cache:
    """The memory of one model for S sequences: the inputs themselves, and the states of each layer."""

    def __init__(
        self,
        layers: list[dict[str, Layout]],
        sequences: int,
        dtype: torch.dtype,
        device: torch.device,
        inputs: Fields = INPUT_FIELDS,
    ) -> None:
        self.inputs = Rows(inputs, sequences, torch.long, device)
        self.layers: list[LayerStates] = [
            {name: new_state(layout, sequences, dtype, device) for name, layout in layer.items()} for layer in layers
        ]

    @property
    def lengths(self) -> list[int]:
        """Tokens that each sequence has been given."""
        return list(self.inputs.lengths)

    def states(self) -> list[LayerState]:
        return [self.inputs, *(rows for layer in self.layers for rows in layer.values())]

    def truncate(self, lengths: int | Sequence[int]) -> None:
        """Cut every sequence to a length (one for all, or one each). Layers may be behind, see `rewind`."""
        wanted = [lengths] * len(self.lengths) if isinstance(lengths, int) else lengths
        self.inputs.truncate(wanted)
        for state in self.states()[1:]:
            state.truncate([min(pair) for pair in zip(wanted, state.lengths, strict=True)])

    def fork(self, sequences: Sequence[int] | None = None) -> "Cache":
        """An independent copy, of all sequences or of those named."""
        chosen = range(len(self.lengths)) if sequences is None else sequences
        copy = object.__new__(Cache)
        copy.inputs = self.inputs.fork(chosen)
        copy.layers = [{name: rows.fork(chosen) for name, rows in layer.items()} for layer in self.layers]
        return copy

    def join(self, other: "Cache") -> None:
        """Copy the sequences of another cache of the same model in behind one's own."""
        for mine, theirs in zip(self.states(), other.states(), strict=True):
            mine.join(theirs)

    def leave(self, sequence: int) -> None:
        """Forget a sequence; the last one takes its place."""
        for state in self.states():
            state.leave(sequence)

    def snapshot(self, sequence: int, start: int, stop: int) -> list[bytes]:
        """One page of a sequence, a piece per state."""
        return [state.snapshot(sequence, start, stop) for state in self.states()]

    def restore(self, sequence: int, page: list[bytes]) -> None:
        for state, piece in zip(self.states(), page, strict=True):
            state.restore(sequence, piece)

    def rewind(self) -> list[Batch]:
        """Cut every sequence back to where all its layers can go on; returns the tokens to be given again, none as a rule.

        Layers are behind after a deep cut, or when this was broken off: whoever does that puts the old `inputs` back. Positions are
        places in documents, as a Batch gives them to text, unless they were kept. Raises ValueError for what was read: its vectors
        were not kept.
        """
        whole = self.lengths
        behind = [state for state in self.states() if isinstance(state, BlockState) or state.lengths != whole]
        kept = [min([length, *(state.resumable(s) for state in behind)]) for s, length in enumerate(whole)]
        if kept == whole:
            return []
        inputs = {name: self.inputs.read(name) for name in self.inputs.names}
        lost = [range(start, stop) for start, stop in zip(kept, whole, strict=True)]
        if any(is_read(row[span.start : span.stop]).any() for row, span in zip(inputs["modality"], lost, strict=True)):
            raise ValueError("patches cannot be given again from what a cache keeps; truncate it to before them")
        self.inputs = self.inputs.fork(range(len(whole)))
        self.truncate(kept)
        steps = range(0, max(map(len, lost)), PIECE)
        return [_piece(inputs, [span[step : step + PIECE] for span in lost]) for step in steps]

    def resumable(self, sequence: int) -> bool:
        """Whether all layers can go on from where a sequence ends, without being given tokens again."""
        length = self.inputs.lengths[sequence]
        return all(state.resumable(sequence) == length for state in self.states())

    def bytes_per_token(self) -> float:
        """Bytes that one more token of one sequence costs."""
        return sum(state.bytes_per_token() for state in self.states())

    def fixed_bytes(self) -> int:
        """What a sequence costs however long it is."""
        return sum(state.fixed_bytes() for state in self.states())


def _piece(inputs: dict[str, Tensor], spans: list[range]) -> Batch:
    """A batch of some tokens of each sequence, from what a cache was given [S, K]."""
    places = torch.arange(inputs["tokens"].shape[1], device=inputs["tokens"].device) - document_starts(inputs["documents"])
    fields = {"positions": places[..., None].expand(-1, -1, 3)} | inputs
    flat = {name: torch.cat([row[s.start : s.stop] for row, s in zip(rows, spans, strict=True)]) for name, rows in fields.items()}
    flat["positions"] = flat["positions"].long().T
    return Batch(lengths=tuple(len(span) for span in spans), **flat)
