"""Writing a checkpoint folder: shards piece by piece, index, config, card and tokenizer, all of it or nothing."""

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from fourfold.errors import CheckpointError
from fourfold.files import atomic_folder
from fourfold.formats.shards import DTYPES, INDEX, WHOLE
from fourfold.media.codec import Codec
from fourfold.text.tokenizer import Tokenizer

SHARD_BYTES = 2 * 10**9
CODEC = "codec"  # the folder inside a checkpoint that holds the codec of what it draws
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


class Spec(NamedTuple):
    """A tensor to be written."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def write_checkpoint(
    folder: str | os.PathLike,
    specs: Mapping[str, Spec],
    pieces: Callable[[str], Iterable[Tensor]],
    config: dict[str, Any],
    card: str,
    tokenizer: Tokenizer | None = None,
    shard_bytes: int = SHARD_BYTES,
    codec: Codec | None = None,
) -> Path:
    """Write a checkpoint folder, replacing an older checkpoint of that name only once the new one is whole on disk.

    Raises CheckpointError when `folder` is something else than a checkpoint, FourfoldError when the disk is full.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: holds other files, which saving would replace; name a new or empty folder")
    shards = divide(specs, shard_bytes)
    with atomic_folder(folder) as place:
        for file, names in shards.items():
            write_shard(place / file, {name: specs[name] for name in names}, pieces)
        write_rest(place, config, index_of(shards, specs), card, tokenizer)
        if codec is not None:
            codec.save(place / CODEC)
    return folder


def write_rest(place: Path, config: dict[str, Any], index: dict[str, Any] | None, card: str, tokenizer: Tokenizer | None) -> None:
    """All that stands beside the shards."""
    if index is not None:
        write_json(place / INDEX, index)
    write_json(place / "config.json", config)
    (place / "README.md").write_text(card, encoding="utf-8")
    if tokenizer is not None:
        tokenizer.save(place)


def divide(specs: Mapping[str, Spec], shard_bytes: int) -> dict[str, list[str]]:
    """Files and the tensors of each, none above `shard_bytes` unless it holds a single tensor."""
    shards, filled = [[]], 0  # type: tuple[list[list[str]], int]
    for name, spec in specs.items():
        if shards[-1] and filled + spec.bytes > shard_bytes:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += spec.bytes
    count = len(shards)
    files = [f"model-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)] if count > 1 else [WHOLE]
    return dict(zip(files, shards, strict=True))


def index_of(shards: Mapping[str, list[str]], specs: Mapping[str, Spec]) -> dict[str, Any] | None:
    """The contents of the index, None when one file holds everything."""
    if len(shards) == 1:
        return None
    weight_map = {name: file for file, names in shards.items() for name in names}
    return {"metadata": {"total_size": sum(spec.bytes for spec in specs.values())}, "weight_map": weight_map}


def write_shard(path: Path, specs: Mapping[str, Spec], pieces: Callable[[str], Iterable[Tensor]]) -> None:
    """Write one file, a piece of a tensor at a time: `pieces(name)` gives the parts of a tensor in the order in which they lie."""
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))  # keeps each aligned
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in order:
        begin, end = end, end + specs[name].bytes
        entries[name] = {"dtype": _NAMES[specs[name].dtype], "shape": list(specs[name].shape), "data_offsets": [begin, end]}
    head = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        for name in order:
            _write_tensor(file, name, specs[name], pieces(name))


def write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _write_tensor(file: BinaryIO, name: str, spec: Spec, pieces: Iterable[Tensor]) -> None:
    written = 0
    for piece in pieces:
        data = piece.to("cpu", spec.dtype).contiguous().reshape(-1).view(torch.uint8)
        written += file.write(memoryview(data.numpy()))
        del piece, data  # before the next one is read
    if written != spec.bytes:
        raise RuntimeError(f"{name}: {written} bytes were written instead of {spec.bytes}")
