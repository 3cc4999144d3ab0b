"""Checkpoints in our own format: a folder that the ecosystem can open, written whole or not at all, and read strictly.

    config.json  model.safetensors (or shards and model.safetensors.index.json)  README.md
    tokenizer.json  tokenizer_config.json  chat_template.jinja

The model's `state_dict` is the truth: a tensor that is missing, left over or of another shape is an error that names it.
"""

import errno
import json
import os
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, ConfigError
from fourfold.files import atomic_folder
from fourfold.model.engram import Engram
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from fourfold.weights.stores import MappedStore

WHOLE, INDEX = "model.safetensors", "model.safetensors.index.json"
SHARD_BYTES = 2 * 10**9
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Stored(NamedTuple):
    """Where a tensor lies, and its shape as the file's header says."""

    file: Path
    shape: tuple[int, ...]


def save(
    model: Transformer,
    folder: str | os.PathLike,
    tokenizer: Tokenizer | None = None,
    card: str | None = None,
    dtype: str | torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> Path:
    """Write a checkpoint folder, replacing an older checkpoint of that name only once the new one is whole on disk.

    `card` is the text of README.md; `dtype` is what floating tensors are stored as, except those the model keeps in fp32.
    Raises CheckpointError when `folder` is something else than a checkpoint, FourfoldError when the disk is full.
    """
    folder = Path(folder)
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: holds other files, which saving would replace; name a new or empty folder")
    if any(isinstance(module, MappedStore) for module in model.modules()):
        raise CheckpointError(f"{folder}: a model with mapped tables cannot be saved; load it with mapped=False")
    wanted = parse_dtype(dtype)
    with atomic_folder(folder) as place:
        stored = _write_weights(model, place, wanted, shard_bytes)
        _write_json(place / "config.json", model.config.to_flat() | {"dtype": stored})
        (place / "README.md").write_text(card or _plain_card(model, folder.name), encoding="utf-8")
        if tokenizer is not None:
            tokenizer.save(place)
        for file in place.glob("*.safetensors"):  # the library makes them private
            shutil.copymode(place / "config.json", file)
    return folder


def load(
    folder: str | os.PathLike,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    mapped: bool = False,
) -> Transformer:
    """The model of a folder, in evaluation mode; never more than it and one tensor in memory.

    `dtype` casts floating tensors (None: as stored); `mapped` leaves Engram's tables on disk, read row by row.
    Raises CheckpointError in one line for anything missing, truncated, left over or misshapen, ConfigError for a dtype or device.
    """
    folder, wanted, place = Path(folder), parse_dtype(dtype), parse_device(device)
    model = _skeleton(folder)
    stored = _stored_tensors(folder)
    _check(folder, model.state_dict(), stored)
    if mapped:
        _map_tables(model, stored)
    _fill(model, stored, wanted, place)
    return model.eval()


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


def read_config(folder: Path) -> ModelConfig:
    """The ModelConfig of a checkpoint folder; a field that is wrong is named together with the file."""
    flat = read_json(folder / "config.json")
    flat.pop("dtype", None)
    try:
        return ModelConfig.from_flat(flat)
    except ConfigError as error:
        raise CheckpointError(f"{folder / 'config.json'}: {error}") from None


def parse_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    """A torch dtype from its name; None stays None ("as stored")."""
    if dtype is None or dtype in DTYPES.values():
        return dtype
    if dtype not in DTYPES:
        raise ConfigError(f"dtype: {dtype} is not a weight format; choose one of {', '.join(DTYPES)}")
    return DTYPES[dtype]


def parse_device(device: str | torch.device | None) -> torch.device:
    """A device that this machine has; None is the CPU."""
    try:
        return torch.empty(0, device="cpu" if device is None else device).device
    except (RuntimeError, AssertionError) as error:  # torch says either
        reason = (str(error).splitlines() or ["unknown"])[0].rstrip(".")
        raise ConfigError(f"device: {device} is not to be had here ({reason}); leave it out, or give cpu") from None


def _skeleton(folder: Path) -> Transformer:
    """The model of config.json without any memory of its own."""
    config = read_config(folder)
    try:
        with torch.device("meta"):
            return Transformer(config)
    except (RuntimeError, TypeError) as error:  # what torch says to a size beyond its integers
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{folder / 'config.json'}: asks for impossible sizes ({reason}); correct them") from None


def _target(model: Transformer, name: str, tensor: Tensor, wanted: torch.dtype | None) -> torch.dtype:
    """What a tensor is cast to: the format asked for, but for integers and what the model keeps in fp32."""
    keeps = wanted is None or not tensor.is_floating_point() or model.keep_fp32(name)
    return tensor.dtype if keeps else wanted


def _write_weights(model: Transformer, place: Path, wanted: torch.dtype | None, shard_bytes: int) -> str:
    """Write the shards one at a time; returns the format that most weights (all but the exceptions) are stored in."""
    tensors = model.state_dict()
    targets = {name: _target(model, name, tensor, wanted) for name, tensor in tensors.items()}
    sizes = {name: tensor.numel() * targets[name].itemsize for name, tensor in tensors.items()}
    shards: list[list[str]] = [[]]
    for name in tensors:
        if shards[-1] and sum(sizes[other] for other in shards[-1]) + sizes[name] > shard_bytes:
            shards.append([])
        shards[-1].append(name)
    files = [f"model-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
    files = files if len(shards) > 1 else [WHOLE]
    for file, names in zip(files, shards, strict=True):
        _write_shard({name: tensors[name].to("cpu", targets[name]).contiguous() for name in names}, place / file)
    if len(shards) > 1:
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        _write_json(place / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": weight_map})
    return str(targets["embed.weight"]).removeprefix("torch.")


def _write_shard(tensors: dict[str, Tensor], path: Path) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:  # the library wraps what the system said
        full = "os error 28" in str(error) or "No space" in str(error)
        raise OSError(errno.ENOSPC if full else errno.EIO, str(error)) from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _plain_card(model: Transformer, name: str) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    front = "---\nlicense: apache-2.0\nlibrary_name: fourfold\npipeline_tag: text-generation\n---\n"
    use = f'```python\nimport fourfold\n\nmodel = fourfold.load("{name}")\n```\n'
    return f"{front}# {name}\n\nA Fourfold model of {count:,} parameters; config.json says what it is made of.\n\n{use}"


def _stored_tensors(folder: Path) -> dict[str, Stored]:
    """Every tensor of the folder, from the headers of its safetensors files alone."""
    files = [WHOLE]
    if (folder / INDEX).exists():
        weight_map = read_json(folder / INDEX).get("weight_map")
        if not isinstance(weight_map, dict) or not all(isinstance(f, str) and Path(f).name == f for f in weight_map.values()):
            raise CheckpointError(f"{folder / INDEX}: weight_map must give each tensor a file of this folder; copy it again")
        files = sorted(set(weight_map.values()))
    stored: dict[str, Stored] = {}
    for file in files:
        path = folder / file
        with _open(path) as content:
            stored |= {name: Stored(path, tuple(content.get_slice(name).get_shape())) for name in content.keys()}  # noqa: SIM118
    return stored


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; copy the whole checkpoint again")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: truncated or not a safetensors file ({reason}); copy it again") from None


def _check(folder: Path, expected: dict[str, Tensor], stored: dict[str, Stored]) -> None:
    """One line for the first tensor that does not fit, and how many more there are."""
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    remedy = "use the config.json it was saved with"
    if missing := [name for name in shapes if name not in stored]:
        said = f"{folder}: tensor {missing[0]} {list(shapes[missing[0]])} is missing{_more(missing)}"
        raise CheckpointError(f"{said}; copy the checkpoint again, or {remedy}")
    if extra := [name for name in stored if name not in shapes]:
        file, shape = stored[extra[0]]
        said = f"{file}: tensor {extra[0]} {list(shape)} is not part of the model of config.json"
        raise CheckpointError(f"{said}{_more(extra)}; {remedy}")
    if misshapen := [name for name in shapes if stored[name].shape != shapes[name]]:
        file, shape = stored[misshapen[0]]
        said = f"{file}: tensor {misshapen[0]} is {list(shape)} where config.json asks for {list(shapes[misshapen[0]])}"
        raise CheckpointError(f"{said}{_more(misshapen)}; {remedy}")


def _more(names: list[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""


def _map_tables(model: Transformer, stored: dict[str, Stored]) -> None:
    """Replace Engram's resident tables by rows read from the file that holds them."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Engram):
            key = f"{name}.table.weight"
            module.table = MappedStore(stored[key].file, key)


def _fill(model: Transformer, stored: dict[str, Stored], dtype: torch.dtype | None, device: torch.device) -> None:
    """Put the stored tensors in the place of the meta ones, one at a time."""
    expected = model.state_dict()
    for path in sorted({stored[name].file for name in expected}):
        with _open(path) as content:
            for name in (name for name in expected if stored[name].file == path):
                tensor = content.get_tensor(name)
                if tensor.is_floating_point() != expected[name].is_floating_point():
                    wrong = f"tensor {name} is stored as {tensor.dtype}, where {expected[name].dtype} is needed"
                    raise CheckpointError(f"{path}: {wrong}; convert the checkpoint again")
                _assign(model, name, tensor.to(device, _target(model, name, tensor, dtype), copy=True))
    model.to(device)  # the buffers that are not stored


def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor)
    else:
        module._buffers[leaf] = tensor
