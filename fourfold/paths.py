"""Where things live: the user's home for Fourfold, and what is bundled with the code."""

import os
from pathlib import Path


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


def find(kind: str, name_or_folder: str | os.PathLike) -> Path | None:
    """Resolve a folder, or the name of one under `$FOURFOLD_HOME/<kind>` or among the bundled ones; None when there is none."""
    candidates = [Path(name_or_folder), home() / kind / str(name_or_folder)]
    if (shipped := bundled(kind)) is not None:
        candidates.append(shipped / str(name_or_folder))
    return next((path for path in candidates if path.is_dir()), None)
