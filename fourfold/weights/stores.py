"""Stores: a stacked tensor (experts, Engram rows) that hands out the rows asked for, wherever they are kept.

A store has `.shape`, `.fetch(ids) -> [*ids.shape, ...]` and `.all()`; whoever computes with the rows need not know where they were.
"""

import json
import os
import struct
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.errors import CheckpointError

_DTYPES = {
    "F32": (np.float32, torch.float32),
    "F16": (np.float16, torch.float16),
    "BF16": (np.uint16, torch.bfloat16),
    "I64": (np.int64, torch.int64),
}


class Store(Protocol):
    """Rows by id. `fetch` is pure: the same ids give the same bits from every kind of store."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    def fetch(self, ids: Tensor) -> Tensor: ...

    def all(self) -> Tensor: ...


class ResidentStore(nn.Module):
    """A stack that is an ordinary parameter: trained, moved and saved like any other."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(*shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.weight.shape)

    def fetch(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self.weight) if self.weight.dim() == 2 else self.weight[ids]

    def all(self) -> Tensor:
        """The whole stack, without a copy."""
        return self.weight


class MappedStore(nn.Module):
    """A stack that stays in its safetensors file and is read row by row through the page cache; it has no parameter."""

    def __init__(self, path: str | os.PathLike, name: str) -> None:
        super().__init__()
        self.path, self.name = Path(path), name
        start, entry = _locate(self.path, name)
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(f"{self.path}: tensor {name} is {entry['dtype']}, which cannot be mapped; load it resident")
        stored, self.dtype = _DTYPES[entry["dtype"]]
        begin, _ = entry["data_offsets"]
        try:
            self._rows = np.memmap(self.path, stored, mode="r", offset=start + begin, shape=tuple(entry["shape"]))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{self.path}: tensor {name} is cut off ({error}); copy the file again") from None

    @property
    def shape(self) -> tuple[int, ...]:
        return self._rows.shape

    def fetch(self, ids: Tensor) -> Tensor:
        rows = torch.from_numpy(np.take(self._rows, ids.cpu().numpy(), axis=0))
        return (rows.view(self.dtype) if self.dtype == torch.bfloat16 else rows).to(ids.device)

    def all(self) -> Tensor:
        """The whole stack, read into memory."""
        return self.fetch(torch.arange(self.shape[0]))


def _locate(path: Path, name: str) -> tuple[int, dict]:
    """Where the data section of a safetensors file starts, and the header's entry for a tensor."""
    try:
        with path.open("rb") as file:
            (size,) = struct.unpack("<Q", file.read(8))
            if size > path.stat().st_size:
                raise ValueError("its header is cut off")
            header = json.loads(file.read(size))
    except (OSError, struct.error, ValueError) as error:
        raise CheckpointError(f"{path}: not a readable safetensors file ({error}); fetch it again") from None
    if name not in header:
        raise CheckpointError(f"{path}: has no tensor {name}; convert the checkpoint again")
    return 8 + size, header[name]
