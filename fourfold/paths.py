"""Where things live: the user's home for Fourfold, and what is bundled with the code."""

import os
from pathlib import Path

MARKERS = {"models": "config.json", "corpora": "corpus.json"}  # the file that makes a folder one


def home() -> Path:
    """`$FOURFOLD_HOME`, by default `~/.cache/fourfold`; holds runs, models and tokenised corpora."""
    return Path(os.environ.get("FOURFOLD_HOME") or Path.home() / ".cache" / "fourfold")


def bundled(kind: str) -> Path | None:
    """The folder `models` or `corpora` that ships with the code: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / kind, package / "_bundled" / kind):
        if folder.is_dir():
            return folder
    return None


def shelves(kind: str) -> list[Path]:
    """The folders in which `models` or `corpora` are found by name, the user's own first."""
    return [folder for folder in (home() / kind, bundled(kind)) if folder is not None]


def available(kind: str) -> list[Path]:
    """The folders of all models or corpora that are found by name."""
    return [file.parent for shelf in shelves(kind) for file in sorted(shelf.glob(f"*/{MARKERS[kind]}"))]


def find(kind: str, name_or_folder: str | os.PathLike) -> Path | None:
    """Resolve a folder, or a name under `$FOURFOLD_HOME/<kind>` or among the bundled ones; None when there is none.

    A path is taken as it is, so that an error can name it; a bare name means a folder of the current directory only if that holds
    a model or a corpus.
    """
    path, name = Path(name_or_folder), os.fspath(name_or_folder)
    is_path = not path.name.strip(".") or os.path.basename(name) != name
    if path.is_dir() and (is_path or (path / MARKERS[kind]).is_file()):
        return path
    return next((shelf / name for shelf in shelves(kind) if (shelf / name).is_dir()), None)
