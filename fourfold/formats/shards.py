"""Safetensors files without their data: which tensors a folder holds and where each lies.

A file is eight bytes (the header's length), the header (JSON: name -> dtype, shape, place) and the data. Headers are read whole and
checked; data is read a tensor at a time, or a leading part of one, into memory of its own, so that nothing stays mapped.
"""

import json
import math
import struct
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fourfold.errors import CheckpointError

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
HEADER_LIMIT = 100_000_000  # bytes, as the library has it

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}

Part = tuple[int | slice, ...]


class OnDisk(Protocol):
    """A tensor that can be read: what it will be, and where it lies, without having read it."""

    @property
    def file(self) -> Path: ...

    @property
    def files(self) -> tuple[Path, ...]:
        """Its own, and that of its scale."""

    @property
    def dtype(self) -> torch.dtype: ...

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def bytes(self) -> int:
        """As stored, scales included."""

    @property
    def codes(self) -> str | None:
        """What a quantised tensor is stored as (fp8, Q4_0); `dtype` is then what it is decoded to unless asked otherwise."""

    def read(self, part: Part = (), dtype: torch.dtype | None = None) -> Tensor: ...


class Stored(NamedTuple):
    """Where a tensor lies, and what its file's header says of it."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int  # of its first byte in the file
    bytes: int
    codes: str | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    def read(self, part: Part = (), dtype: torch.dtype | None = None) -> Tensor:
        """The tensor, or a part that lies together in it (leading indices, the last of them may be a slice), cast to `dtype`."""
        start, shape = region(self.shape, part)
        data = torch.empty(math.prod(shape) * self.dtype.itemsize, dtype=torch.uint8)
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset + start * self.dtype.itemsize)
                count = file.readinto(memoryview(data.numpy()))
        except OSError as error:
            raise CheckpointError(f"{self.file}: cannot be read ({error.strerror}); check its permissions") from None
        if count != len(data):
            raise CheckpointError(f"{self.file}: truncated while it was read; copy it again")
        return data.view(self.dtype).reshape(shape).to(dtype or self.dtype)


def region(shape: tuple[int, ...], part: Part) -> tuple[int, tuple[int, ...]]:
    """Index of the first element, and the shape, of a part whose elements lie together. Raises ValueError when they do not."""
    start, rest = 0, math.prod(shape)
    for axis, place in enumerate(part):
        rest //= max(shape[axis], 1)
        if isinstance(place, slice):
            first, last, step = place.indices(shape[axis])
            if step != 1 or any(other != slice(None) for other in part[axis + 1 :]):
                raise ValueError(f"{part} of {list(shape)} does not lie together")
            return start + first * rest, (max(last - first, 0), *shape[axis + 1 :])
        start += place * rest
    return start, shape[len(part) :]


def stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of a checkpoint folder, from its index and the headers of its files alone. Raises CheckpointError."""
    index = _read_index(folder)
    stored: dict[str, Stored] = {}
    for file in sorted(set(index.values())) or [WHOLE]:
        for name, entry in header(folder / file).items():
            if name in stored:
                both = f"{stored[name].file.name} and {file}"
                raise CheckpointError(f"{folder}: tensor {name} lies in both {both}; keep the shards of one checkpoint only")
            stored[name] = entry
    lacking = [name for name, file in index.items() if name not in stored or stored[name].file.name != file]
    if lacking:
        said = f"says that {index[lacking[0]]} holds tensor {lacking[0]}, which it does not{more(lacking)}"
        raise CheckpointError(f"{folder / INDEX}: {said}; copy both again")
    return stored


def header(path: Path) -> dict[str, Stored]:
    """The tensors of one file by name, in the order in which they lie."""
    if not path.is_file():
        pickled = path.name == WHOLE and any(path.parent.glob("*.bin"))
        remedy = "the weights are pickled (.bin); have them saved as safetensors" if pickled else "copy the whole checkpoint again"
        raise CheckpointError(f"{path}: missing; {remedy}")
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = struct.unpack("<Q", file.read(8))[0]
            if length > min(size - 8, HEADER_LIMIT):
                raise ValueError("its header is cut off")
            entries = json.loads(file.read(length), object_pairs_hook=_once)
        if not isinstance(entries, dict):
            raise ValueError("its header is not an object")
        entries.pop("__metadata__", None)
        found = {name: _entry(path, name, entry, 8 + length) for name, entry in entries.items()}
        found = dict(sorted(found.items(), key=lambda item: (item[1].offset, item[1].bytes)))
        _check_layout(found, 8 + length, size)
    except (OSError, struct.error, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({reason}); copy it again") from None
    return found


def check(folder: Path, expected: Mapping[str, tuple[int, ...]], stored: Mapping[str, OnDisk], spare: Collection[str] = ()) -> None:
    """One line for the first tensor that does not fit, and how many more there are. `spare` ones may be there or not."""
    remedy = "use the config.json it was saved with"
    if missing := [name for name in expected if name not in stored and name not in spare]:
        said = f"{folder}: tensor {missing[0]} {list(expected[missing[0]])} is missing{more(missing)}"
        raise CheckpointError(f"{said}; copy the checkpoint again, or {remedy}")
    if extra := [name for name in stored if name not in expected]:
        entry = stored[extra[0]]
        said = f"{entry.file}: tensor {extra[0]} {list(entry.shape)} is not part of the model of config.json"
        raise CheckpointError(f"{said}{more(extra)}; {remedy}")
    if misshapen := [name for name in stored if stored[name].shape != tuple(expected[name])]:
        entry, wanted = stored[misshapen[0]], list(expected[misshapen[0]])
        said = f"{entry.file}: tensor {misshapen[0]} is {list(entry.shape)} where config.json asks for {wanted}"
        raise CheckpointError(f"{said}{more(misshapen)}; {remedy}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a checkpoint folder, or a CheckpointError that says what is wrong with the file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; name a folder that holds a whole checkpoint") from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror}); check its permissions") from None
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}); copy the checkpoint again") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: must hold one JSON object, not a {type(content).__name__}; copy it again")
    return content


def more(names: Collection[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _read_index(folder: Path) -> dict[str, str]:
    """Tensor -> file of a sharded checkpoint; empty when there is no index."""
    path = folder / INDEX
    if not path.exists():
        return {}
    weight_map = read_json(path).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(f, str) and Path(f).name == f for f in weight_map.values()):
        raise CheckpointError(f"{path}: weight_map must give each tensor a file of this folder; copy it again")
    return weight_map


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"its header names {next(name for name in names if names.count(name) > 1)} twice")
    return found


def _entry(path: Path, name: str, entry: Any, data: int) -> Stored:
    """One line of a header. Raises ValueError when it contradicts itself, CheckpointError for a number format we do not know."""
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        sound = all(isinstance(size, int) and size >= 0 for size in (*shape, begin, end))
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound or not isinstance(dtype, str):
        raise ValueError(f"its header says nothing sound of tensor {name}")
    if dtype not in DTYPES:
        known = ", ".join(DTYPES)
        raise CheckpointError(f"{path}: tensor {name} is stored as {dtype}, which cannot be read; convert it to one of {known}")
    if end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
        raise ValueError(f"tensor {name} has {end - begin} bytes, which is not its shape")
    return Stored(path, DTYPES[dtype], shape, data + begin, end - begin)


def _check_layout(entries: Mapping[str, Stored], begin: int, size: int) -> None:
    """The data of a sound file is one tensor after the other, up to its end."""
    for name, entry in entries.items():
        if entry.offset != begin:
            raise ValueError(f"tensor {name} does not begin where the one before it ends")
        begin += entry.bytes
    if begin != size:
        raise ValueError(f"it has {size} bytes where its header asks for {begin}")
