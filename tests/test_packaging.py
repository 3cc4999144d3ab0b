"""What set-up installs is what pyproject asks for, and a wheel carries the small models and corpora."""

import itertools
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LOCK = [line for line in (ROOT / "requirements" / "dev.txt").read_text().splitlines() if not line.startswith("#")]


def test_lock_pins_releases_that_anyone_can_install() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", line) for line in LOCK)


def test_lock_satisfies_the_ranges() -> None:
    pins = {name.lower().replace("_", "-"): version for name, version in (line.split("==") for line in LOCK)}
    project = PROJECT["project"]
    asked = [project["dependencies"], *project["optional-dependencies"].values(), PROJECT["build-system"]["requires"]]
    for requirement in map(Requirement, itertools.chain(*asked)):
        assert requirement.specifier.contains(pins[requirement.name]), requirement


@pytest.mark.slow
def test_wheel_runs_with_what_it_carries(tmp_path: Path) -> None:
    builders = pytest.importorskip("hatchling.builders.wheel", reason="hatchling comes with `make setup`")
    wheel = next(builders.WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["standard"]))
    with zipfile.ZipFile(wheel) as content:
        content.extractall(tmp_path / "site")
    metadata = next((tmp_path / "site").glob("*.dist-info/METADATA")).read_text()
    assert "Requires-Python: >=3.11" in metadata and "License-Expression: Apache-2.0" in metadata
    ask = "import fourfold; from fourfold.formats import names; fourfold.load('nano'); print(fourfold.__file__, *names())"
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site"), "FOURFOLD_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", ask]
    said = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout.split()
    assert said[0].startswith(str(tmp_path / "site")) and "nano" in said[1:]
    assert list((tmp_path / "site" / "fourfold" / "_bundled" / "corpora").glob("*/*.parquet"))
    page = {file.name for file in (ROOT / "fourfold" / "server" / "page").iterdir()}
    assert "index.html" in page and page <= {file.name for file in (tmp_path / "site" / "fourfold" / "server" / "page").iterdir()}
    kernels = {file.name for file in (ROOT / "fourfold" / "ops" / "native").glob("*.?pp")}
    assert kernels and kernels <= {file.name for file in (tmp_path / "site" / "fourfold" / "ops" / "native").iterdir()}
