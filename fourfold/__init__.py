"""Fourfold: the whole life of a V4-class model in one readable code base.

    import fourfold
    model = fourfold.load("nano")                       # evaluation mode; model.tokenizer when the folder has one
    logits = model(tokens).logits                       # [batch, length] int64 -> [batch, length, vocab]

Importing this is light: torch and the model come with the first call.
"""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fourfold.model.transformer import Transformer
    from fourfold.text.tokenizer import Tokenizer

__version__ = "0.1.0"
__all__ = ["load", "load_tokenizer"]


def load(
    name_or_folder: str | os.PathLike,
    dtype: "str | torch.dtype | None" = None,
    device: "str | torch.device | None" = None,
    *,
    mapped: bool = False,
    weights: str | None = None,
    allow_hub: bool = False,
) -> "Transformer":
    """The model of a folder or GGUF file, or of a name under `$FOURFOLD_HOME/models` or among the bundled ones, in evaluation mode.

    `dtype` casts the weights (None: as stored, and bfloat16 when they are quantised), `mapped` leaves Engram's tables on disk;
    `weights="int8"` keeps matrices as bytes, to be decoded with, not trained or saved;
    `allow_hub` (or FOURFOLD_HUB=1) looks a name up on the Hub too. Raises CheckpointError in one line.
    """
    from fourfold.formats import open_checkpoint

    return open_checkpoint(name_or_folder, dtype, device, mapped, allow_hub, weights)


def load_tokenizer(name_or_folder: str | os.PathLike, *, allow_hub: bool = False) -> "Tokenizer":
    """The tokenizer of a checkpoint, found as `load` finds the model. Raises CheckpointError when it has none.

    `deepseek-v4` is the published vocabulary of V4, without a checkpoint; it needs the extra `tokenizers-v4`.
    """
    from fourfold.formats import open_tokenizer

    return open_tokenizer(name_or_folder, allow_hub)
