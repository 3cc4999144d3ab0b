"""Checkpoints of a run: `checkpoints/step-N/` holds all that makes a resumed run equal to an uninterrupted one, bit for bit."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fourfold.data.corpus import file_checksum
from fourfold.errors import CheckpointError
from fourfold.files import atomic_folder
from fourfold.training.folders import read_json
from fourfold.training.optim import Optimizer

KEPT = 2
STATE, CHECKSUM = "state.pt", "checksum.json"


class DamagedError(CheckpointError):
    """A checkpoint that is not whole, so that an older one has to do."""


def folder_of(run: Path, step: int) -> Path:
    return run / "checkpoints" / f"step-{step}"


def steps_of(run: Path) -> list[int]:
    """Steps that have a checkpoint, oldest first."""
    names = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    return sorted(int(name) for name in names if name.isdigit())


def save(run: Path, step: int, model: nn.Module, optimizer: Optimizer, recipe: str) -> None:
    """Write the state after `step` steps aside, rename it, and drop all but the newest two; `recipe` is a digest of the recipe.

    The data's cursor is the step itself, since a batch is a pure function of it. Raises FourfoldError when it cannot be written;
    what was there before stays.
    """
    state = {"step": step, "model": model.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}
    with atomic_folder(folder_of(run, step)) as folder:
        with (folder / STATE).open("wb") as file:  # an open file reports a full disk as the OSError it is
            torch.save(state, file)
        (folder / CHECKSUM).write_text(json.dumps({STATE: file_checksum(folder / STATE), "recipe": recipe}))
    for old in steps_of(run)[:-KEPT]:
        shutil.rmtree(folder_of(run, old))


def load(run: Path, step: int, model: nn.Module, optimizer: Optimizer, recipe: str) -> None:
    """Put a checkpoint back. Raises DamagedError when its files are not whole, CheckpointError when it is of another recipe."""
    folder = folder_of(run, step)
    try:
        about = read_json(folder / CHECKSUM, **{STATE: str, "recipe": str})
        if file_checksum(folder / STATE) != about[STATE]:
            raise DamagedError(f"{folder / STATE}: damaged, its checksum differs; an older checkpoint is needed")
    except OSError:
        raise DamagedError(f"{folder}: incomplete; an older checkpoint is needed") from None
    except CheckpointError as error:
        raise DamagedError(str(error)) from None
    if about["recipe"] != recipe:
        raise CheckpointError(f"{run / 'recipe.json'}: is not the recipe this run began with; put that back or start a new run")
    try:
        state: dict[str, Any] = torch.load(folder / STATE, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["rng"])
    except (RuntimeError, ValueError, KeyError, TypeError, pickle.UnpicklingError) as error:
        reason = (str(error).splitlines() or [""])[:2][-1].strip()  # torch's first line of several is a heading
        said = f"{folder / STATE}: does not fit this model and optimiser ({reason})"
        raise CheckpointError(f"{said}; use the version of fourfold that wrote it, or start a new run") from None


def clean(run: Path) -> None:
    """Remove what a killed run left half written."""
    for leftover in (run / "checkpoints").glob(".step-*"):
        shutil.rmtree(leftover, ignore_errors=True)
