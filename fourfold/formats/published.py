"""Published formats, read and written by the table of their adapter.

Every tensor of a source (a folder, a GGUF file) is read once, in the order in which it lies, decoded, and copied to its place,
so that loading holds the model and one tensor. What is missing, left over or misshapen is an error before any data is read.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, ConfigError
from fourfold.formats.adapter import Adapter, Place
from fourfold.formats.ours import (
    DTYPES,
    assign,
    check_kind,
    check_savable,
    dtype_name,
    parse_dtype,
    skeleton,
    target,
)
from fourfold.formats.quantised import paired
from fourfold.formats.shards import OnDisk, check, read_json, stored_tensors
from fourfold.formats.writing import SHARD_BYTES, Spec, write_checkpoint
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer


class Source(NamedTuple):
    """A published checkpoint as it lies: nothing of it has been read but its config and its headers."""

    path: Path  # for errors: what holds the config
    adapter: Adapter
    config: ModelConfig
    tensors: Mapping[str, OnDisk]  # by published name, in the order in which they lie, without those that need not be read

    @property
    def holder(self) -> Path:
        """The folder, or the GGUF file."""
        return self.path.parent if self.path.name == "config.json" else self.path

    @property
    def places(self) -> dict[str, Place]:
        return self.adapter.places(self.config, self.tensors)


def open_folder(adapter: Adapter, folder: Path) -> Source:
    """A folder in the format of an adapter. Raises CheckpointError for whatever config.json or a header has wrong."""
    path = folder / "config.json"
    published = read_json(path)
    stored = {name: entry for name, entry in stored_tensors(folder).items() if not adapter.ignores(name, published)}
    tensors = paired(stored, published, path)
    config = adapter.fitted(config_of(adapter, published, path), tensors)
    return Source(path, adapter, config, tensors)


def config_of(adapter: Adapter, published: dict[str, Any], path: Path) -> ModelConfig:
    """The model of a published config.json; a field that cannot be honoured is named together with the file."""
    try:
        return adapter.config(published)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}") from None


def build(source: Source, dtype: torch.dtype | None, device: torch.device) -> Transformer:
    """The model of a source, filled one tensor at a time."""
    model = skeleton(source.config, source.path)
    expected, places = model.state_dict(), source.places
    check_fit(source, expected, places)
    formats = model_dtypes(model, source, places, dtype)
    for name, place in _unread(source, places):
        home = expected[place.name]
        if home.is_meta:
            home = expected[place.name] = torch.empty(home.shape, dtype=formats[place.name], device=device)
            assign(model, place.name, home)
        home[place.part].copy_(place.ours(source.tensors[name].read(dtype=formats[place.name])))
    model.to(device)  # the buffers that are not stored
    return model.eval()


def _unread(source: Source, places: Mapping[str, Place]) -> Iterator[tuple[str, Place]]:
    """The tensors to be read and where they go, file by file."""
    order = {name: i for i, name in enumerate(source.tensors)}
    read = [name for name, place in places.items() if not place.copy]
    yield from ((name, places[name]) for name in sorted(read, key=order.__getitem__))


def check_fit(source: Source, expected: Mapping[str, Tensor], places: Mapping[str, Place]) -> None:
    """Every stored tensor has a place of its shape, and the places fill the model. `expected`: our state dict, on meta."""
    shapes = {name: _published_shape(name, place, expected[place.name]) for name, place in places.items()}
    check(source.holder, shapes, source.tensors, spare=[name for name, place in places.items() if place.copy])
    for name, place in places.items():
        if name in source.tensors:
            check_kind(name, source.tensors[name], expected[place.name])
    check_cover(places, expected)


def _published_shape(name: str, place: Place, whole: Tensor) -> tuple[int, ...]:
    """The shape in which a format stores a part of one of our tensors."""
    part = whole[place.part]
    published = place.theirs(part)
    back = place.ours(torch.empty_like(published))
    if back.shape != part.shape:
        raise RuntimeError(f"{name}: its place makes {list(back.shape)} of {list(published.shape)}, not {list(part.shape)}")
    return tuple(published.shape)


def check_cover(places: Mapping[str, Place], expected: Mapping[str, Tensor]) -> None:
    """Each of our tensors is filled by its places, as often as it has elements."""
    filled = dict.fromkeys(expected, 0)
    for place in places.values():
        if not place.copy:
            filled[place.name] += expected[place.name][place.part].numel()
    for name, count in filled.items():
        if count != expected[name].numel():
            raise RuntimeError(f"the table of names fills {count} of the {expected[name].numel()} elements of {name}")


def model_dtypes(
    model: Transformer, source: Source, places: Mapping[str, Place], wanted: torch.dtype | None
) -> dict[str, torch.dtype]:
    """What each of our tensors will be.

    Numbers are of one format, so that products need no casts: the one asked for, or that of the embedding (bfloat16 for a quantised
    checkpoint); but fp32 for what the model keeps in fp32.
    """
    if wanted is None:
        wanted = next(
            source.tensors[name].dtype for name, place in places.items() if place.name == "embed.weight" and not place.copy
        )
        quantised = any(entry.codes for entry in source.tensors.values())
        wanted = torch.bfloat16 if quantised else wanted if wanted in DTYPES.values() else torch.float32
    formats = {}
    for name, tensor in model.state_dict().items():
        number = torch.float32 if model.keep_fp32(name) else wanted
        formats[name] = number if tensor.is_floating_point() else tensor.dtype
    return formats


def save(
    adapter: Adapter,
    model: Transformer,
    folder: str | os.PathLike,
    dtype: str | torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write a folder that transformers opens, replacing an older checkpoint of that name only once it is whole on disk.

    Raises ConfigError naming the part of the model that the format has no words for.
    """
    check_savable(model, folder)
    wanted, tensors = parse_dtype(dtype), model.state_dict()
    config = published_config(adapter, model.config, target(model, "embed.weight", tensors["embed.weight"].dtype, wanted))
    places = adapter.places(model.config)
    check_cover(places, tensors)
    specs = {name: _spec(model, place, tensors[place.name], wanted) for name, place in places.items()}

    def pieces(name: str) -> list[Tensor]:
        place = places[name]
        return [place.theirs(tensors[place.name][place.part])]

    card = published_card(adapter, Path(folder).name)
    return write_checkpoint(folder, specs, pieces, config, card, tokenizer, shard_bytes)


def _spec(model: Transformer, place: Place, whole: Tensor, wanted: torch.dtype | None) -> Spec:
    part = place.theirs(torch.empty_like(whole, device="meta")[place.part])
    return Spec(target(model, place.name, whole.dtype, wanted), tuple(part.shape))


def published_config(adapter: Adapter, config: ModelConfig, dtype: torch.dtype) -> dict[str, Any]:
    """The whole of config.json. Raises ConfigError naming the part of the model that the format has no words for."""
    kind = {"architectures": [adapter.architecture], "model_type": adapter.model_type, "dtype": dtype_name(dtype)}
    return kind | adapter.published(config)


def published_card(adapter: Adapter, name: str) -> str:
    front = "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
    return f"{front}# {name}\n\nWritten by Fourfold as `{adapter.model_type}` ({adapter.architecture}).\n"
