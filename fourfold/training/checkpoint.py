"""Checkpoints of a run: `checkpoints/step-N/` holds all that makes a resumed run equal to an uninterrupted one, bit for bit."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fourfold.errors import CheckpointError
from fourfold.files import atomic_folder
from fourfold.training.optim import Optimizer

KEPT = 2
STATE, CHECKSUM = "state.pt", "checksum.json"


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step}"


def steps_of(run: Path) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    names = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    return sorted(int(name) for name in names if name.isdigit())


def save(run: Path, step: int, model: nn.Module, optimizer: Optimizer) -> None:
    """Write the state after `step` steps aside, rename it, and drop all but the newest two.

    The data's cursor is the step itself, since a batch is a pure function of it. Raises FourfoldError when it cannot be written;
    what was there before stays.
    """
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    with atomic_folder(folder_of(run, step)) as folder:
        with (folder / STATE).open("wb") as file:  # an open file reports a full disk as the OSError it is
            torch.save(state, file)
        (folder / CHECKSUM).write_text(json.dumps({STATE: _sha256(folder / STATE)}))
    for old in steps_of(run)[:-KEPT]:
        shutil.rmtree(folder_of(run, old))


def load(run: Path, step: int, model: nn.Module, optimizer: Optimizer) -> None:
    """Put a checkpoint back. Raises CheckpointError when its file is missing, truncated or damaged."""
    folder = folder_of(run, step)
    try:
        wanted = json.loads((folder / CHECKSUM).read_text())[STATE]
        if _sha256(folder / STATE) != wanted:
            raise CheckpointError(f"{folder / STATE}: damaged, its checksum differs; an older checkpoint is needed")
    except (OSError, ValueError, KeyError):
        raise CheckpointError(f"{folder}: incomplete; an older checkpoint is needed") from None
    state: dict[str, Any] = torch.load(folder / STATE, weights_only=True)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])


def clean(run: Path) -> None:
    """Remove what a killed run left half written."""
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
