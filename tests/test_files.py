"""Files and folders are whole or absent, wherever the writing stops."""

import os
from pathlib import Path

import pytest

from fourfold.errors import FourfoldError
from fourfold.files import atomic_file, atomic_folder


@pytest.fixture
def old(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("old")
    return tmp_path / "model"


def test_a_folder_replaces_the_older_one(old: Path) -> None:
    with atomic_folder(old) as place:
        (place / "weights").write_text("new")
        assert (old / "weights").read_text() == "old"
    assert (old / "weights").read_text() == "new"
    assert [path.name for path in old.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), KeyboardInterrupt()])
def test_stopped_between_the_renames_the_old_folder_comes_back(
    error: BaseException, old: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = os.replace, []

    def second_fails(source: Path, target: Path) -> None:
        calls.append(target)
        if len(calls) == 2:
            raise error
        rename(source, target)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises((FourfoldError, KeyboardInterrupt)), atomic_folder(old) as place:
        (place / "weights").write_text("new")
    assert (old / "weights").read_text() == "old"
    assert [path.name for path in old.parent.iterdir()] == ["model"]


@pytest.mark.parametrize("code", [28, 13])
def test_a_file_that_cannot_be_written_leaves_the_old_one(code: int, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("old")
    with pytest.raises(FourfoldError, match="x: (no space left|cannot be written)"), atomic_file(tmp_path / "x") as partial:
        partial.write_text("ne")
        raise OSError(code, os.strerror(code))
    assert (tmp_path / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
