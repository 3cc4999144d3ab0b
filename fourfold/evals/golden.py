"""Golden logits: what a checkpoint gives for a few fixed prompts, for whoever runs it with other code and wants to compare.

A file is one JSON object: `dtype` of weights and arithmetic, `weights_sha256`, and `prompts`, each with `name`, `ids`, and for the
last few `positions` (the logits after `ids[position]`) the `top_ids` and `top_logits` [positions, 16] and `logsumexp` [positions].
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from fourfold.data.corpus import file_checksum
from fourfold.errors import DataError
from fourfold.files import atomic_file
from fourfold.model.transformer import Transformer

FILE, WEIGHTS = "golden.json", "model.safetensors"
POSITIONS, TOP = 4, 16


@torch.inference_mode()
def golden(model: Transformer, prompts: Mapping[str, list[int]]) -> list[dict]:
    """The `prompts` of a golden file: ids through one plain forward each, without a cache, sparse where there is an indexer."""
    found = []
    for name, ids in prompts.items():
        positions = list(range(len(ids)))[-POSITIONS:]
        logits = model(torch.tensor([ids], device=model.embed.weight.device)).logits[0, positions].double().cpu()
        top = logits.topk(TOP)
        found.append({"name": name, "ids": ids, "positions": positions, "top_ids": top.indices.tolist()})
        found[-1] |= {"top_logits": _rounded(top.values), "logsumexp": _rounded(logits.logsumexp(-1))}
    return found


def write_golden(model: Transformer, folder: Path, prompts: Mapping[str, list[int]]) -> Path:
    """Golden logits of a checkpoint folder, whose fp32 model is given, into its golden.json."""
    dtype = str(model.embed.weight.dtype).removeprefix("torch.")
    about = {"dtype": dtype, "weights_sha256": file_checksum(folder / WEIGHTS), "prompts": golden(model, prompts)}
    with atomic_file(folder / FILE) as partial:
        partial.write_text(json.dumps(about) + "\n", "utf-8")
    return folder / FILE


def read_golden(folder: Path) -> dict:
    """A folder's golden file. Raises DataError when it was written for other weights than lie beside it."""
    about = json.loads((folder / FILE).read_text("utf-8"))
    if about["weights_sha256"] != file_checksum(folder / WEIGHTS):
        raise DataError(f"{folder / FILE}: was written for other weights than {WEIGHTS}; write it again")
    return about


def _rounded(values: torch.Tensor) -> list:
    """Seven decimals: far below what two orders of summation differ by."""
    return (values * 1e7).round().div(1e7).tolist()
