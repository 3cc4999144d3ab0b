"""Files that are either whole or absent: written aside, flushed to disk, then renamed."""

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fourfold.errors import FourfoldError


@contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a path to write to; on success it is renamed to `path`, on failure it is removed and nothing has changed.

    Raises FourfoldError when the disk is full or the place cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield partial
        flush(partial)
        os.replace(partial, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        with suppress(OSError):  # there may be nothing, or no such folder
            partial.unlink()


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """As `atomic_file`, for a folder; an older folder of the same name is replaced only once the new one is whole."""
    path = Path(path)
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    retired = path.with_name(f".{path.name}.retired-{os.getpid()}")
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in partial.rglob("*"):
            flush(file)
        if path.exists():
            os.replace(path, retired)
        os.replace(partial, path)
    except OSError as error:
        raise write_error(path, error) from error
    finally:
        if retired.exists() and not path.exists():  # stopped between the two renames
            os.replace(retired, path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(retired, ignore_errors=True)


def write_error(path: Path, error: OSError) -> FourfoldError:
    """The one line for a failed write; what was there before is untouched."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return FourfoldError(f"{path}: no space left on the disk; free some or write elsewhere (nothing was replaced)")
    return FourfoldError(f"{path}: cannot be written ({error.strerror or error}); choose a folder you may write to")


def flush(path: Path) -> None:
    """Have what was written to a file reach the disk."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
