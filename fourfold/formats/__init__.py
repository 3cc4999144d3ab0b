"""Checkpoints on disk: where a name is found, and which reader its config.json asks for."""

import os
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch

from fourfold.errors import CheckpointError
from fourfold.formats.ours import read_json
from fourfold.model.transformer import Transformer
from fourfold.paths import available, find
from fourfold.text.tokenizer import Tokenizer

# model_type of config.json -> the module whose `load(folder, dtype, device, mapped)` reads it
READERS: dict[str, str] = {"fourfold": "fourfold.formats.ours"}


def open_checkpoint(
    name_or_folder: str | os.PathLike,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    mapped: bool = False,
    allow_hub: bool = False,
) -> Transformer:
    """A model in evaluation mode, with its tokenizer as `.tokenizer` (None when the folder has none)."""
    folder = locate(name_or_folder, allow_hub)
    model = _reader(folder)(folder, dtype, device, mapped)
    model.tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
    return model


def open_tokenizer(name_or_folder: str | os.PathLike, allow_hub: bool = False) -> Tokenizer:
    """The tokenizer of a checkpoint. Raises CheckpointError when the folder has none."""
    folder = locate(name_or_folder, allow_hub)
    if not (folder / "tokenizer.json").is_file():
        raise CheckpointError(f"{folder / 'tokenizer.json'}: missing; save the checkpoint with its tokenizer")
    return Tokenizer.load(folder)


def locate(name_or_folder: str | os.PathLike, allow_hub: bool = False) -> Path:
    """The folder of a checkpoint: given, under `$FOURFOLD_HOME/models`, bundled, or on the Hub when allowed."""
    if (folder := find("models", name_or_folder)) is not None:
        return folder
    if allow_hub or os.environ.get("FOURFOLD_HUB") == "1":
        return _download(str(name_or_folder))
    known = ", ".join(names()) or "none"
    remedy = "or set FOURFOLD_HUB=1 to look on the Hub"
    raise CheckpointError(f"{name_or_folder}: no such model; name a folder or one of those here ({known}), {remedy}")


def names() -> list[str]:
    """The models found without a path: those under `$FOURFOLD_HOME/models` and the bundled ones."""
    return sorted({folder.name for folder in available("models")})


def _reader(folder: Path) -> Callable[..., Transformer]:
    path = folder / "config.json"
    kind = read_json(path).get("model_type")
    if not isinstance(kind, str) or kind not in READERS:
        known = ", ".join(READERS)
        raise CheckpointError(f"{path}: model_type is {kind!r}, which cannot be read; known ones are: {known}")
    return import_module(READERS[kind]).load


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.md"]))
    except (OSError, ValueError) as error:  # the client's own errors derive from these
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{name}: not here and not to be had from the Hub ({reason}); check name and network") from None
