"""From one checkpoint to another, tensor by tensor: no model is built, and no more is held than one stored tensor and a piece.

Shards are finished one after the other in a folder aside (`.NAME.converting`), each noted there with its checksum, so that a
conversion that was killed goes on after the last whole one. The target appears only when everything is.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from fourfold.errors import CheckpointError
from fourfold.files import atomic_file, flush, write_error
from fourfold.formats.adapter import Adapter, Place
from fourfold.formats.ours import check_kind, dtype_name, plain_card, read_config, skeleton, target
from fourfold.formats.published import Source, check_fit, model_dtypes, published_card, published_config
from fourfold.formats.shards import Part, check, read_json, region, stored_tensors
from fourfold.formats.writing import SHARD_BYTES, Spec, divide, index_of, write_json, write_rest, write_shard
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer

NOTES = "conversion.json"
PIECE = 1 << 24  # elements of a tensor of ours that are read at once

# Follows the files as they are begun, given the bytes of each (a progress bar).
Watch = Callable[[Iterable[str], Mapping[str, int]], Iterable[str]]


def unwatched(files: Iterable[str], sizes: Mapping[str, int]) -> Iterable[str]:
    return files


class Origin(Protocol):
    """A checkpoint seen as tensors of our state dict, to be read in pieces."""

    model: Transformer  # on meta
    dtypes: dict[str, torch.dtype]  # what each of our tensors becomes
    files: set[Path]  # that it is read from

    def pieces(self, name: str) -> Iterator[Part]:
        """Parts of one of our tensors, in the order in which they lie, each of which is cheap to read."""

    def read(self, name: str, part: Part) -> Tensor: ...


class Ours:
    """A folder in our own format."""

    def __init__(self, folder: Path, dtype: torch.dtype | None) -> None:
        self.stored = stored_tensors(folder)
        self.model = skeleton(read_config(folder), folder / "config.json")
        expected = self.model.state_dict()
        check(folder, {name: tuple(tensor.shape) for name, tensor in expected.items()}, self.stored)
        for name, entry in self.stored.items():
            check_kind(name, entry, expected[name])
        self.dtypes = {name: target(self.model, name, entry.dtype, dtype) for name, entry in self.stored.items()}
        self.files = {entry.file for entry in self.stored.values()}

    def pieces(self, name: str) -> Iterator[Part]:
        """Rows of the first dimension, as many as make a piece."""
        shape = self.stored[name].shape
        if not shape:
            yield ()
            return
        step = max(PIECE // max(math.prod(shape[1:]), 1), 1)
        yield from ((slice(start, start + step),) for start in range(0, shape[0], step))

    def read(self, name: str, part: Part) -> Tensor:
        try:
            return self.stored[name].read(part, self.dtypes[name])
        except ValueError:  # a part that is spread over the tensor
            return self.stored[name].read((), self.dtypes[name])[part]


class Published:
    """A folder or file in a published format."""

    def __init__(self, source: Source, dtype: torch.dtype | None) -> None:
        self.source, self.places = source, source.places
        self.model = skeleton(source.config, source.path)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in self.model.state_dict().items()}
        check_fit(source, self.model.state_dict(), self.places)
        self.dtypes = model_dtypes(self.model, source, self.places, dtype)
        self.files = {file for entry in source.tensors.values() for file in entry.files}

    @cached_property
    def homes(self) -> dict[str, dict[str, Place]]:
        """For each of our tensors the published ones that fill it."""
        homes: dict[str, dict[str, Place]] = {}
        for name, place in self.places.items():
            if not place.copy:
                homes.setdefault(place.name, {})[name] = place
        return homes

    def pieces(self, name: str) -> Iterator[Part]:
        """The parts that published tensors fill, or the whole when those do not lie one after the other."""
        parts: dict[int, tuple[Part, int]] = {}
        end = 0
        try:
            for place in self.homes[name].values():
                start, shape = region(self.shapes[name], place.part)
                parts[start] = place.part, math.prod(shape)
        except ValueError:
            parts = {}
        for start, (_, size) in sorted(parts.items()):
            end = end + size if start == end else -1
        whole = math.prod(self.shapes[name])
        yield from (part for _, (part, _) in sorted(parts.items())) if end == whole and parts else [()]

    def read(self, name: str, part: Part) -> Tensor:
        for published, place in self.homes[name].items():
            if place.part == part:
                return place.ours(self.source.tensors[published].read(dtype=self.dtypes[name]))
        return self._whole(name)[part]

    def _whole(self, name: str) -> Tensor:
        home = torch.empty(self.shapes[name], dtype=self.dtypes[name])
        for published, place in self.homes[name].items():
            home[place.part].copy_(place.ours(self.source.tensors[published].read(dtype=self.dtypes[name])))
        return home


class Wanted(NamedTuple):
    """What is to be written: its tensors, where their numbers come from, and what stands beside them."""

    specs: Mapping[str, Spec]
    pieces: Callable[[str], Iterable[Tensor]]
    config: dict[str, Any]
    card: str


def as_ours(origin: Origin, name: str) -> Wanted:
    """The checkpoint in our own format."""
    model = origin.model
    specs = {key: Spec(origin.dtypes[key], tuple(tensor.shape)) for key, tensor in model.state_dict().items()}
    config = model.config.to_flat() | {"dtype": dtype_name(specs["embed.weight"].dtype)}
    return Wanted(specs, lambda key: (origin.read(key, part) for part in origin.pieces(key)), config, plain_card(model, name))


def as_published(origin: Origin, adapter: Adapter, name: str) -> Wanted:
    """The checkpoint in a published format."""
    model, tensors = origin.model, origin.model.state_dict()
    places = adapter.places(model.config)
    specs = {
        key: Spec(origin.dtypes[place.name], tuple(place.theirs(tensors[place.name][place.part]).shape))
        for key, place in places.items()
    }

    def pieces(key: str) -> list[Tensor]:
        place = places[key]
        return [place.theirs(origin.read(place.name, place.part))]

    config = published_config(adapter, model.config, origin.dtypes["embed.weight"])
    return Wanted(specs, pieces, config, published_card(adapter, name))


def convert(
    origin: Origin,
    wanted: Wanted,
    folder: str | os.PathLike,
    tokenizer: Tokenizer | None = None,
    shard_bytes: int = SHARD_BYTES,
    watch: Watch = unwatched,
    codec: Path | None = None,
) -> dict[str, Any]:
    """Write `wanted` as a folder, with a copy of the folder `codec` in it; returns what was done.

    Raises CheckpointError when `folder` exists. What a killed conversion had finished is taken over if it is whole and came from
    the same files with the same options.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder}: exists; name a new folder, or move that one away")
    shards = divide(wanted.specs, shard_bytes)
    sizes = {file: sum(wanted.specs[name].bytes for name in names) for file, names in shards.items()}
    aside = folder.absolute().with_name(f".{folder.absolute().name}.converting")
    notes = _take_over(aside, _fingerprint(origin, wanted, shards))
    kept = sorted(notes["done"])
    for file in watch(shards, sizes):
        if file not in notes["done"]:
            with atomic_file(aside / file) as partial:
                write_shard(partial, {name: wanted.specs[name] for name in shards[file]}, wanted.pieces)
                notes["done"][file] = _checksum(partial)
            _note(aside, notes)
    if codec is not None:
        shutil.copytree(codec, aside / codec.name, dirs_exist_ok=True)
    _finish(aside, folder, wanted, index_of(shards, wanted.specs), tokenizer)
    return {"folder": str(folder), "shards": len(shards), "taken_over": len(kept), "bytes": sum(sizes.values())}


def _take_over(aside: Path, fingerprint: str) -> dict[str, Any]:
    """The notes of a conversion, begun or gone on with; finished shards that are not what they were are forgotten."""
    notes = read_json(aside / NOTES) if (aside / NOTES).is_file() else {}
    if notes.get("fingerprint") != fingerprint or not isinstance(notes.get("done"), dict):
        shutil.rmtree(aside, ignore_errors=True)
        notes = {"fingerprint": fingerprint, "done": {}}
    whole = {file: sha for file, sha in notes["done"].items() if (aside / file).is_file() and _checksum(aside / file) == sha}
    notes["done"] = whole
    _note(aside, notes)
    return notes


def _note(aside: Path, notes: dict[str, Any]) -> None:
    with atomic_file(aside / NOTES) as partial:
        write_json(partial, notes)


def _finish(aside: Path, folder: Path, wanted: Wanted, index: dict[str, Any] | None, tokenizer: Tokenizer | None) -> None:
    """Put what is missing beside the shards, and the folder in its place."""
    try:
        write_rest(aside, wanted.config, index, wanted.card, tokenizer)
        for partial in aside.glob(".*.partial-*"):  # of those that were killed
            partial.unlink()
        for file in aside.rglob("*"):
            flush(file)
        os.replace(aside, folder)
        (folder / NOTES).unlink()
    except OSError as error:
        raise write_error(folder, error) from error


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fingerprint(origin: Origin, wanted: Wanted, shards: Mapping[str, list[str]]) -> str:
    """Of all that decides the bytes of the shards: the files read, as they are now, and what is written of them."""
    files = {}
    for file in sorted(file.absolute() for file in origin.files):
        about = file.stat()
        files[str(file)] = about.st_size, about.st_mtime_ns
    tensors = {name: [str(spec.dtype), *spec.shape] for name, spec in wanted.specs.items()}
    return hashlib.sha256(json.dumps([files, tensors, shards, wanted.config], sort_keys=True).encode()).hexdigest()
