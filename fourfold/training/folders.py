"""The folder of a run: where it is, and the description that lies in it beside metrics and checkpoints."""

import json
import os
import platform
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch

from fourfold import __version__
from fourfold.errors import CheckpointError, ConfigError
from fourfold.files import atomic_file, write_error
from fourfold.formats import ours
from fourfold.paths import home


def run_folder(name: str, out: Path | None, resume: bool) -> Path:
    """The folder to start a run of the recipe `name` in, made where there is none, or to resume one from (by default its newest).

    Raises FourfoldError when it is taken or cannot be written, before anything is spent on data and model.
    """
    runs = home() / "runs"
    if resume:
        begun = [path.parent for path in runs.glob(f"{name}-*/recipe.json")]
        folder = out or max(begun, key=lambda path: path.stat().st_mtime, default=None)
        if folder is None or not (folder / "recipe.json").is_file():
            raise ConfigError(f"--resume: {folder or runs} holds no run of {name}; give its folder as --out")
    else:
        folder = out or runs / f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        if not resume and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"--out {folder}: already holds files; add --resume to go on with that run, or choose another folder")
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise write_error(folder, error) from None
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


def read_json(path: Path, **kinds: type) -> dict:
    """A JSON object with at least these keys, of these kinds. Raises CheckpointError."""
    content = ours.read_json(path)
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            raise CheckpointError(f"{path}: {key} is missing or of the wrong kind; copy the run again or start a new one")
    return content


def write_json(path: Path, value: dict) -> None:
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2) + "\n")
