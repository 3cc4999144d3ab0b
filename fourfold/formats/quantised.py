"""Quantised tensors of published folders: codes and their scale, two stored tensors that are read as one.

    X.weight fp8 (F8_E4M3) with X.weight_scale_inv (V3) or X.scale (V4), a scale for each block of rows and columns
    X.weight fp4 (I8, two codes a byte) with X.scale, a scale for each 32 inputs of a row

The scale may lie in another file. Whoever asks for X.weight gets numbers.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fourfold.errors import CheckpointError
from fourfold.formats.shards import OnDisk, Part, Stored
from fourfold.weights.number_formats import BLOCK, RUN, blocks, decode_fp4, decode_fp8

FP8, BYTES = torch.float8_e4m3fn, (torch.int8, torch.uint8)
SCALES = (torch.float32, torch.float8_e8m0fnu, torch.uint8, torch.bfloat16, torch.float16)


class Quantised(NamedTuple):
    """Codes and scale as they lie. `block`: None for fp4."""

    stored: Stored
    scale: Stored
    block: tuple[int, int] | None

    @property
    def file(self) -> Path:
        return self.stored.file

    @property
    def files(self) -> tuple[Path, ...]:
        return self.stored.file, self.scale.file

    @property
    def dtype(self) -> torch.dtype:
        return torch.bfloat16

    @property
    def codes(self) -> str | None:
        return "fp8" if self.block else "fp4"

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.stored.shape
        return (rows, columns) if self.block else (rows, 2 * columns)

    @property
    def bytes(self) -> int:
        return self.stored.bytes + self.scale.bytes

    def read(self, part: Part = (), dtype: torch.dtype | None = None) -> Tensor:
        codes, scale, wanted = self.stored.read(), self.scale.read(), dtype or self.dtype
        return (decode_fp8(codes, scale, self.block, wanted) if self.block else decode_fp4(codes, scale, wanted))[part]


def paired(stored: Mapping[str, Stored], published: Mapping[str, Any], path: Path) -> dict[str, OnDisk]:
    """The tensors of a folder, codes and scales as one. `published`: its config.json, read from `path`.

    Raises CheckpointError for a scale that is missing or does not fit, and for a way of quantising that is not known here.
    """
    block = _block(published.get("quantization_config"), path)
    scales = {name: scale for name, entry in stored.items() if (scale := _scale_of(name, entry, stored)) is not None}
    taken = set(scales.values())
    found: dict[str, OnDisk] = {}
    for name, entry in stored.items():
        if name in scales:
            found[name] = _pair(name, entry, scales[name], stored[scales[name]], block)
        elif name not in taken:
            found[name] = entry
    return found


def _scale_of(name: str, entry: Stored, stored: Mapping[str, Stored]) -> str | None:
    """The name of the scale that belongs to a tensor; None when it is not quantised."""
    if entry.dtype != FP8 and entry.dtype not in BYTES:
        return None
    candidates = f"{name}_scale_inv", f"{name.removesuffix('weight')}scale"
    scale = next((candidate for candidate in candidates if candidate in stored and candidate != name), None)
    if scale is None and entry.dtype == FP8:
        both = " or ".join(candidates)
        raise CheckpointError(f"{entry.file}: tensor {name} is fp8, and its scale {both} is missing; copy the checkpoint again")
    return scale


def _pair(name: str, codes: Stored, scale_name: str, scale: Stored, block: tuple[int, int]) -> Quantised:
    if len(codes.shape) != 2:
        raise CheckpointError(f"{codes.file}: tensor {name} is {list(codes.shape)}; only matrices are quantised; convert it again")
    pair = Quantised(codes, scale, block if codes.dtype == FP8 else None)
    rows, columns = pair.shape
    wanted = (blocks(rows, block[0]), blocks(columns, block[1])) if pair.block else (rows, blocks(columns, RUN))
    if scale.shape != wanted or scale.dtype not in SCALES:
        said = (
            f"tensor {scale_name} is {list(scale.shape)} of {scale.dtype}, where {name} {list(codes.shape)} asks for {list(wanted)}"
        )
        raise CheckpointError(f"{scale.file}: {said}; check weight_block_size in config.json, or copy the checkpoint again")
    return pair


def _block(about: Any, path: Path) -> tuple[int, int]:
    """Rows and columns of fp8 that share a scale."""
    about = about if isinstance(about, dict) else {}
    method, block = about.get("quant_method", "fp8"), about.get("weight_block_size") or BLOCK
    if method != "fp8":
        raise CheckpointError(
            f"{path}: quantization_config.quant_method is {method!r}, which cannot be read; use fp8 or plain weights"
        )
    sound = isinstance(block, list | tuple) and len(block) == 2 and all(type(size) is int and size > 0 for size in block)
    if not sound:
        raise CheckpointError(f"{path}: quantization_config.weight_block_size is {block!r}; it must be two sizes like [128, 128]")
    return block[0], block[1]
