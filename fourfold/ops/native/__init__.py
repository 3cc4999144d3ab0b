"""Kernels in C++ for the processor: many small steps over the same rows done in one pass over memory.

The sources beside this file have plain C entry points, are compiled once for this machine with $CXX or g++ (GNU C++ 9 or newer;
about three seconds, kept in `$FOURFOLD_HOME/cache`) and called through ctypes. Where there is no compiler, or with
FOURFOLD_NATIVE=0, the definitions in PyTorch are used instead: `ready` says which.

They link to libgomp only and load after torch, so that both use one pool of threads: two OpenMP runtimes would spin against
each other and make every step a hundred times slower. Where torch brings another runtime, the definitions are used.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fourfold import paths
from fourfold.errors import FourfoldError
from fourfold.files import atomic_file

SUFFIXES = {torch.float32: "f32", torch.bfloat16: "bf16"}
# No -ffast-math: NaN and infinity must stay what they are. Sums in several lanes are asked for one by one in the sources.
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-fopenmp", "-shared", "-fPIC")
LANES = 16  # a row that is read in whole vectors has a multiple of this width


def ready(*tensors: Tensor) -> bool:
    """Whether kernels exist for these tensors: on the processor, all of one of the two formats."""
    first = tensors[0].dtype
    for tensor in tensors:  # a loop: this is asked before every kernel of every layer
        if tensor.dtype is not first or not tensor.is_cpu:
            return False
    return first in SUFFIXES and not torch.compiler.is_compiling() and kernels() is not None


def call(name: str, kind: torch.dtype | None, *arguments: Tensor | int | float | None) -> None:
    """Run the kernel `name`, of the format `kind` if it has several.

    Tensors (contiguous, unless the kernel takes strides; None for a null pointer) go by address, and a float must be one: an int
    would go another way.
    """
    function = _functions.get((name, kind)) or _function(name, kind, arguments)
    function(*[x if x.__class__ in NUMBERS else x.data_ptr() for x in arguments])


NUMBERS = frozenset((int, float, type(None)))  # what is handed on as it is
_functions: dict[tuple[str, torch.dtype | None], Callable[..., None]] = {}


def _function(name: str, kind: torch.dtype | None, arguments: tuple[Tensor | int | float | None, ...]) -> Callable[..., None]:
    """A kernel that knows from here on what its arguments are, so that ctypes need not be told each time."""
    found = getattr(kernels(), name if kind is None else f"{name}_{SUFFIXES[kind]}")
    types = {int: ctypes.c_int64, float: ctypes.c_float}
    found.argtypes, found.restype = [types.get(type(x), ctypes.c_void_p) for x in arguments], None
    return _functions.setdefault((name, kind), found)


@cache
def kernels() -> ctypes.CDLL | None:
    """The compiled kernels; None where they are switched off or cannot be built."""
    asked, *options = shlex.split(os.environ.get("CXX") or "g++")
    compiler = shutil.which(asked)
    if os.environ.get("FOURFOLD_NATIVE") == "0" or platform.system() != "Linux" or compiler is None:
        return None
    folder = Path(__file__).parent
    sources = sorted(folder.glob("*.cpp"))
    key = hashlib.sha256("\0".join((compiler, *options, *FLAGS, _processor())).encode())
    for file in sorted(folder.glob("*.?pp")):
        key.update(file.read_bytes())
    built = paths.home() / "cache" / f"kernels-{key.hexdigest()[:16]}.so"
    try:
        if not built.is_file():
            with atomic_file(built) as partial:
                command = [compiler, *options, *FLAGS, "-o", str(partial), *map(str, sources)]
                subprocess.run(command, check=True, capture_output=True)
        opened = ctypes.CDLL(str(built))
        return opened if _openmp(opened) == _openmp(ctypes.CDLL("libtorch_cpu.so")) else None
    except (AttributeError, FourfoldError, OSError, subprocess.CalledProcessError):
        return None


def _openmp(library: ctypes.CDLL) -> int | None:
    """Where the OpenMP runtime lies that a library uses. Raises AttributeError where it uses none."""
    return ctypes.cast(library.omp_get_max_threads, ctypes.c_void_p).value


def _processor() -> str:
    """What -march=native depends on: a home folder may be shared by machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "") + platform.machine()
