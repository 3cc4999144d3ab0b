"""Which model made a page: pages of one must never be given to another, however alike."""

import hashlib
import zlib
from collections.abc import Iterator

import torch
from torch import Tensor

from fourfold import __version__
from fourfold.model.transformer import Transformer
from fourfold.weights.stores import MappedStore


def model_digest(model: Transformer) -> str:
    """A name for a model's states: of its config, of what its layers keep, and of all its weights with their formats.

    Reads every weight once (3 GB/s), so call it when the model has been loaded and not again. Tables left on disk are told by their
    file, its size and its time.
    """
    kept = [layer.fields() for layer in model.layers]
    facts = [__version__, model.config.model_dump_json(), repr(kept), *_weights(model)]
    return hashlib.blake2b("\n".join(facts).encode(), digest_size=16).hexdigest()


def _weights(model: Transformer) -> Iterator[str]:
    for name, tensor in model.state_dict().items():
        yield f"{name} {tensor.dtype} {list(tensor.shape)} {_checksum(tensor)}"
    for name, module in model.named_modules():
        if isinstance(module, MappedStore):
            about = module.path.stat()
            yield f"{name} {module.path.resolve()} {module.name} {about.st_size} {about.st_mtime_ns}"


def _checksum(tensor: Tensor) -> int:
    """CRC-32, which any change by accident or training alters, four times as fast as a hash that withstands forgers."""
    return zlib.crc32(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
