"""Checkpoints in our own format: a folder that the ecosystem can open, written whole or not at all, and read strictly.

    config.json  model.safetensors (or shards and model.safetensors.index.json)  README.md
    tokenizer.json  tokenizer_config.json  chat_template.jinja  codec/ (of a model that draws)

The model's `state_dict` is the truth: a tensor that is missing, left over or of another shape is an error that names it.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, ConfigError
from fourfold.formats.shards import INDEX, WHOLE, OnDisk, Stored, check, read_json, stored_tensors
from fourfold.formats.writing import SHARD_BYTES, Spec, write_checkpoint
from fourfold.media.codec import Codec
from fourfold.model.engram import Engram
from fourfold.model.int8 import is_packed
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from fourfold.weights.stores import MappedStore

__all__ = ["INDEX", "SHARD_BYTES", "WHOLE", "load", "read_config", "read_json", "save"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def save(
    model: Transformer,
    folder: str | os.PathLike,
    tokenizer: Tokenizer | None = None,
    card: str | None = None,
    dtype: str | torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
    codec: Codec | None = None,
) -> Path:
    """Write a checkpoint folder, replacing an older checkpoint of that name only once the new one is whole on disk.

    `card` is the text of README.md; `dtype` is what floating tensors are stored as, except those the model keeps in fp32; `codec`
    makes pixels of what is drawn, by default the one that `fourfold.load` found with the model.
    Raises CheckpointError when `folder` is something else than a checkpoint, FourfoldError when the disk is full.
    """
    check_savable(model, folder)
    wanted = parse_dtype(dtype)
    tensors = model.state_dict()
    specs = {name: Spec(target(model, name, tensor.dtype, wanted), tuple(tensor.shape)) for name, tensor in tensors.items()}
    config = model.config.to_flat() | {"dtype": dtype_name(specs["embed.weight"].dtype)}
    card = card or plain_card(model, Path(folder).name)
    codec = codec or getattr(model, "codec", None)
    return write_checkpoint(folder, specs, lambda name: [tensors[name]], config, card, tokenizer, shard_bytes, codec)


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
    model = skeleton(read_config(folder), folder / "config.json")
    stored = stored_tensors(folder)
    check(folder, {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}, stored)
    if mapped:
        _map_tables(model, stored)
    _fill(model, stored, wanted, place)
    return model.eval()


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


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def skeleton(config: ModelConfig, file: Path) -> Transformer:
    """The model of a config (read from `file`) without any memory of its own."""
    try:
        with torch.device("meta"):
            return Transformer(config)
    except (RuntimeError, TypeError) as error:  # what torch says to a size beyond its integers
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: asks for impossible sizes ({reason}); correct them") from None


def target(model: Transformer, name: str, stored: torch.dtype, wanted: torch.dtype | None) -> torch.dtype:
    """What a tensor is cast to: the format asked for, but for integers and what the model keeps in fp32."""
    return stored if wanted is None or not stored.is_floating_point or model.keep_fp32(name) else wanted


def check_kind(name: str, stored: OnDisk, expected: Tensor) -> None:
    """Integers where the model has integers, and a format that it computes in where it has numbers."""
    kind = stored.dtype.is_floating_point
    if kind != expected.is_floating_point() or (kind and stored.dtype.itemsize == 1):
        wrong = f"tensor {name} is stored as {stored.dtype}, where {expected.dtype} is needed"
        raise CheckpointError(f"{stored.file}: {wrong}; convert the checkpoint again")


def check_savable(model: Transformer, folder: str | os.PathLike) -> None:
    if any(isinstance(module, MappedStore) for module in model.modules()):
        raise CheckpointError(f"{folder}: a model with mapped tables cannot be saved; load it with mapped=False")
    if is_packed(model):
        raise CheckpointError(f"{folder}: a model with INT8 weights cannot be saved; load it without weights=")


def plain_card(model: Transformer, name: str) -> str:
    count = sum(parameter.numel() for parameter in model.parameters())
    front = "---\nlicense: apache-2.0\nlibrary_name: fourfold\npipeline_tag: text-generation\n---\n"
    use = f'```python\nimport fourfold\n\nmodel = fourfold.load("{name}")\n```\n'
    return f"{front}# {name}\n\nA Fourfold model of {count:,} parameters; config.json says what it is made of.\n\n{use}"


def assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    """Put a tensor in the place of the meta one of that name."""
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    if leaf in module._parameters:
        module._parameters[leaf] = nn.Parameter(tensor)
    else:
        module._buffers[leaf] = tensor


def _map_tables(model: Transformer, stored: Mapping[str, Stored]) -> None:
    """Replace Engram's resident tables by rows read from the file that holds them."""
    for name, module in list(model.named_modules()):
        if isinstance(module, Engram):
            key = f"{name}.table.weight"
            module.table = MappedStore(stored[key].file, key)


def _fill(model: Transformer, stored: Mapping[str, Stored], dtype: torch.dtype | None, device: torch.device) -> None:
    """Put the stored tensors in the place of the meta ones, one at a time, in the order in which they lie."""
    expected = model.state_dict()
    for name in sorted(expected, key=lambda name: (stored[name].file, stored[name].offset)):
        check_kind(name, stored[name], expected[name])
        assign(model, name, stored[name].read().to(device, target(model, name, stored[name].dtype, dtype)))
    model.to(device)  # the buffers that are not stored
