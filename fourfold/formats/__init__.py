"""Checkpoints on disk: where a name is found, and which format its config.json asks for."""

import os
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fourfold.config import MODEL_TYPE, ModelConfig
from fourfold.errors import CheckpointError, ConfigError
from fourfold.formats import convert, gguf, ours, published
from fourfold.formats.adapter import Adapter
from fourfold.formats.shards import INDEX, WHOLE, read_json
from fourfold.formats.writing import CODEC, SHARD_BYTES
from fourfold.media.codec import MODEL_TYPE as CODEC_TYPE
from fourfold.media.codec import Codec
from fourfold.model.int8 import to_int8
from fourfold.model.transformer import Transformer
from fourfold.paths import available, find
from fourfold.text.packaged import PACKAGED, open_packaged
from fourfold.text.tokenizer import Tokenizer

# model_type of config.json -> the module whose ADAPTER reads and writes it
ADAPTERS: dict[str, str] = {
    "llama": "fourfold.formats.llama",
    "deepseek_v2": "fourfold.formats.deepseek_v2",
    "deepseek_v3": "fourfold.formats.deepseek_v3",
    "deepseek_v32": "fourfold.formats.deepseek_v32",
    "deepseek_v4": "fourfold.formats.deepseek_v4",
    "deepseek": "fourfold.formats.deepseek",  # of DeepSeekMoE 16B; last, as transformers does not know it
}


def open_checkpoint(
    name_or_path: str | os.PathLike,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    mapped: bool = False,
    allow_hub: bool = False,
    weights: str | None = None,
) -> Transformer:
    """A model in evaluation mode, with its tokenizer as `.tokenizer` and the codec of what it draws as `.codec` (None without)."""
    if weights not in (None, "int8"):
        raise ConfigError(f"weights: {weights!r} is no format to keep weights in; choose int8, or leave it out")
    path = locate(name_or_path, allow_hub)
    source = open_source(path)
    if source is None:
        model = ours.load(path, dtype, device, mapped)
    else:
        model = published.build(source, ours.parse_dtype(dtype), ours.parse_device(device))
    if weights is not None:
        to_int8(model)
    model.tokenizer = find_tokenizer(path)
    object.__setattr__(model, "codec", find_codec(path, model.config))  # beside the network: not counted or cast with it
    return model


def open_tokenizer(name_or_path: str | os.PathLike, allow_hub: bool = False) -> Tokenizer:
    """The tokenizer of a checkpoint, or one that a package ships (`deepseek-v4`), unless a folder here has that name.

    Raises CheckpointError when it has none, or a GGUF file has one that we cannot rebuild.
    """
    if str(name_or_path) in PACKAGED and find("models", name_or_path) is None:
        return open_packaged(str(name_or_path))
    path = locate(name_or_path, allow_hub)
    if is_gguf(path):
        return gguf.open_tokenizer(path)
    if not (path / "tokenizer.json").is_file():
        raise CheckpointError(f"{path / 'tokenizer.json'}: missing; save the checkpoint with its tokenizer")
    return Tokenizer.load(path)


def find_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of a located checkpoint, None where `open_tokenizer` would say why there is none."""
    try:
        return open_tokenizer(path)
    except CheckpointError:
        return None


def find_codec(path: Path, config: ModelConfig) -> Codec | None:
    """The codec in the folder of a model that draws, None where there is none. Raises CheckpointError for one of other codes."""
    if config.media_out is None or not (path / CODEC).is_dir():
        return None
    codec, codes = Codec.load(path / CODEC), config.media_out.image_token_size
    if codec.codes != codes:
        raise CheckpointError(f"{path / CODEC}: has {codec.codes} codes, the model draws {codes}; put the one it was trained with")
    return codec


def open_config(name_or_path: str | os.PathLike, allow_hub: bool = False) -> ModelConfig:
    """What a checkpoint is, from its config and the headers of its files; from the config alone when there are no weights."""
    path = locate(name_or_path, allow_hub)
    if is_gguf(path):
        return gguf.open_file(path).config
    adapter = adapter_of_folder(path)
    if adapter is None:
        return ours.read_config(path)
    if not any((path / file).exists() for file in (WHOLE, INDEX)):
        return published.config_of(adapter, read_json(path / "config.json"), path / "config.json")
    return published.open_folder(adapter, path).config


def open_source(path: Path) -> published.Source | None:
    """A located checkpoint in a published format, or a GGUF file, before any data is read; None for one in our own format."""
    if is_gguf(path):
        return gguf.open_file(path)
    adapter = adapter_of_folder(path)
    return None if adapter is None else published.open_folder(adapter, path)


def is_gguf(path: Path) -> bool:
    return path.suffix == ".gguf" and not path.is_dir()


def locate(name_or_path: str | os.PathLike, allow_hub: bool = False) -> Path:
    """A checkpoint's folder, or GGUF file: given, under `$FOURFOLD_HOME/models`, bundled, or on the Hub when allowed."""
    if Path(name_or_path).suffix == ".gguf" and Path(name_or_path).is_file():
        return Path(name_or_path)
    if (folder := find("models", name_or_path)) is not None:
        return folder if (folder / "config.json").exists() else _only_file(folder)
    if allow_hub or os.environ.get("FOURFOLD_HUB") == "1":
        return _download(str(name_or_path))
    known = ", ".join(names()) or "none"
    remedy = "or set FOURFOLD_HUB=1 to look on the Hub"
    raise CheckpointError(f"{name_or_path}: no such model; name a folder or one of those here ({known}), {remedy}")


def _only_file(folder: Path) -> Path:
    """The one GGUF file of a folder without a config.json; the folder itself when it has none."""
    files = sorted(folder.glob("*.gguf"))
    if len(files) > 1:
        both = ", ".join(file.name for file in files)
        raise CheckpointError(f"{folder}: holds several GGUF files ({both}); name one of them")
    return files[0] if files else folder


def names() -> list[str]:
    """The models found without a path: under `$FOURFOLD_HOME/models` and bundled, but not the codecs that lie there too."""
    return sorted({folder.name for folder in available("models") if not _is_codec(folder)})


def _is_codec(folder: Path) -> bool:
    try:
        return read_json(folder / "config.json").get("model_type") == CODEC_TYPE
    except CheckpointError:  # damaged: whoever loads it is told so
        return False


def export(
    model: Transformer,
    folder: str | os.PathLike,
    model_type: str | None = None,
    dtype: str | torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write a model in a published format, as transformers opens it; by default in the first that has words for it."""
    adapter = adapter_for(model.config) if model_type is None else adapter_of(model_type)
    return published.save(adapter, model, folder, dtype, shard_bytes, tokenizer)


def convert_checkpoint(
    source: str | os.PathLike,
    folder: str | os.PathLike,
    to: str = "fourfold",
    dtype: str | torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    watch: convert.Watch = convert.unwatched,
) -> dict[str, Any]:
    """Write a checkpoint in another format, without ever holding it: `to` is `fourfold` or `hf` (a published one).

    `dtype` as in `open_checkpoint`. A conversion that was killed goes on where it stopped; returns what was done.
    """
    path, name = locate(source), Path(folder).name
    found, wanted = open_source(path), ours.parse_dtype(dtype)
    origin = convert.Ours(path, wanted) if found is None else convert.Published(found, wanted)
    if to == "fourfold":
        target = convert.as_ours(origin, name)
    elif to == "hf":
        target = convert.as_published(origin, found.adapter if found else adapter_for(origin.model.config), name)
    else:
        raise ConfigError(f"to: {to!r} is not a format to convert to; choose fourfold or hf")
    codec = path / CODEC if (path / CODEC).is_dir() else None
    return convert.convert(origin, target, folder, find_tokenizer(path), shard_bytes, watch, codec)


def adapter_of(model_type: str) -> Adapter:
    """The adapter of a published format. Raises ConfigError listing those there are."""
    if model_type not in ADAPTERS:
        raise ConfigError(f"model_type: {model_type!r} is not a published format known here; choose one of {', '.join(ADAPTERS)}")
    return import_module(ADAPTERS[model_type]).ADAPTER


def adapter_for(config: ModelConfig) -> Adapter:
    """The first published format that has words for a model. Raises ConfigError with what each of them lacks."""
    reasons = []
    for model_type in ADAPTERS:
        adapter = adapter_of(model_type)
        try:
            adapter.published(config)
        except ConfigError as error:
            reasons.append(f"{model_type}: {error}")
        else:
            return adapter
    raise ConfigError(f"no published format has words for this model ({'; '.join(reasons)}); keep it in our own")


def adapter_of_folder(folder: Path) -> Adapter | None:
    """The adapter that a folder's config.json asks for; None for our own format."""
    path = folder / "config.json"
    kind = read_json(path).get("model_type")
    if kind == MODEL_TYPE:
        return None
    if not isinstance(kind, str) or kind not in ADAPTERS:
        known = ", ".join([MODEL_TYPE, *ADAPTERS])
        raise CheckpointError(f"{path}: model_type is {kind!r}, which cannot be read; known ones are: {known}")
    return adapter_of(kind)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.md", "encoding/*.py"]))
    except (OSError, ValueError) as error:  # the client's own errors derive from these
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{name}: not here and not to be had from the Hub ({reason}); check name and network") from None
