"""The folder of a run: where it is, and the description that lies in it beside metrics and checkpoints."""

import json
import os
import platform
import time
from importlib.metadata import version
from pathlib import Path

import torch

from fourfold import __version__
from fourfold.errors import CheckpointError, ConfigError
from fourfold.files import atomic_file
from fourfold.paths import home


def run_folder(name: str, out: Path | None, resume: bool) -> Path:
    """The folder to start a run of the recipe `name` in, or to resume one from (by default its newest). Raises ConfigError."""
    runs = home() / "runs"
    if resume:
        folder = out or max(runs.glob(f"{name}-*"), key=lambda path: path.stat().st_mtime, default=None)
        if folder is None or not (folder / "recipe.json").is_file():
            raise ConfigError(f"--resume: {folder or runs} holds no run of {name}; give its folder as --out")
        return folder
    folder = out or runs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out {folder}: already holds files; add --resume to go on with that run, or choose another folder")
    return folder


def description(checksums: dict[str, str], seed: int, steps: int) -> dict:
    """The contents of run.json: `data` may not change before a resumption, the rest one wants to know later."""
    versions = {name: version(name) for name in ("torch", "tokenizers", "numpy")}
    return {
        "data": checksums,
        "seed": seed,
        "steps": steps,
        "versions": {"fourfold": __version__, "python": platform.python_version(), **versions},
        "threads": torch.get_num_threads(),
        "machine": {"system": platform.platform(), "processor": platform.machine(), "cores": os.cpu_count()},
    }


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); start a new run") from None


def write_json(path: Path, value: dict) -> None:
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")
