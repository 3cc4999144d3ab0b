"""What a checkpoint takes on disk, part by part, from the headers of its files alone."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fourfold.config import ModelConfig
from fourfold.formats import open_source
from fourfold.formats.ours import dtype_name, read_config
from fourfold.formats.shards import INDEX, WHOLE, OnDisk, stored_tensors
from fourfold.planner.count import part_of

COPIES = "copies"  # tensors that a format stores a second time
APART = (COPIES, "token_classes")  # what is no parameter of any part


def is_stored(path: Path) -> bool:
    """Whether there are weights beside the config; plans are made without them too."""
    return path.is_file() or (path / INDEX).exists() or (path / WHOLE).exists()


def stored(path: Path) -> dict[str, Any]:
    """Parameters (routers' biases included) and bytes as stored (scales included): in all, by part, and bytes by number format.

    `path`: a folder or a GGUF file.
    """
    source = open_source(path)
    if source is None:
        return _summed(stored_tensors(path), {}, read_config(path))
    owners = {name: COPIES if place.copy else place.name for name, place in source.places.items()}
    return _summed(source.tensors, owners, source.config)


def _summed(tensors: Mapping[str, OnDisk], owners: Mapping[str, str], config: ModelConfig) -> dict[str, Any]:
    parts: dict[str, dict[str, int]] = {}
    formats: dict[str, int] = {}
    for name, entry in tensors.items():
        owner = owners.get(name, name)
        label = owner if owner in APART else part_of(owner, config)
        part = parts.setdefault(label, {"parameters": 0, "bytes": 0})
        part["parameters"] += math.prod(entry.shape)
        part["bytes"] += entry.bytes
        kind = entry.codes or dtype_name(entry.dtype)
        formats[kind] = formats.get(kind, 0) + entry.bytes
    return {
        "parameters": sum(part["parameters"] for name, part in parts.items() if name not in APART),
        "bytes": sum(entry.bytes for entry in tensors.values()),
        "files": len({file for entry in tensors.values() for file in entry.files}),
        "formats": formats,
        "parts": parts,
    }
