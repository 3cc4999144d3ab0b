"""The kernels' loader: built once, switched off or missing without harm, beside one OpenMP runtime; same bits in every run."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fourfold.ops import native
from fourfold.ops.attention import attend_definition, attend_in_parts
from fourfold.ops.cross_entropy import cross_entropy, cross_entropy_definition
from fourfold.ops.experts import grouped_experts
from fourfold.ops.indexer import index_kl, index_scores
from fourfold.ops.norm import rms_norm, rms_norm_definition
from fourfold.ops.streams import read, read_definition, write
from fourfold.ops.topk import newest_topk
from fourfold.weights.stores import ResidentStore
from tests.compare import assert_close
from tests.ops.conftest import Calls

REPOSITORY = Path(__file__).parents[2]
KERNELS = pytest.mark.usefixtures("built")
WITHOUT = """
import torch
from fourfold.ops import native
from fourfold.ops.norm import rms_norm, rms_norm_definition
assert native.kernels() is None and not native.ready(torch.ones(3))
x, weight = torch.randn(4, 6), torch.randn(6)
assert torch.equal(rms_norm(x, weight, 1e-6), rms_norm_definition(x, weight, 1e-6))
print("definitions")
"""
MAPPED = r"""
import re
import torch
from fourfold.ops import native
from fourfold.ops.norm import rms_norm
assert native.kernels() is not None
torch.set_num_threads(2)
torch.randn(300, 300) @ torch.randn(300, 300)
rms_norm(torch.randn(64, 6), torch.randn(6), 1e-6)
print(*sorted({line.split()[-1] for line in open("/proc/self/maps") if re.search(r"/lib[gi]?omp[-.5][^/]*$", line)}))
"""


def python(code: str, **environment: str) -> str:
    settings = os.environ | {"PYTHONPATH": str(REPOSITORY)} | environment
    done = subprocess.run([sys.executable, "-c", code], env=settings, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def script(path: Path, body: str) -> str:
    """A compiler of our own: a shell script, whose arguments are the compiler's."""
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def load() -> ctypes.CDLL | None:
    """Load afresh, whatever this process has loaded already."""
    return native.kernels.__wrapped__()


def test_switched_off() -> None:
    assert python(WITHOUT, FOURFOLD_NATIVE="0") == "definitions"


def test_no_compiler() -> None:
    assert python(WITHOUT, CXX="/nowhere/no-such-compiler") == "definitions"


def test_a_compiler_that_fails(tmp_path: Path) -> None:
    home = {"FOURFOLD_HOME": str(tmp_path / "home")}
    assert python(WITHOUT, CXX=script(tmp_path / "broken", "echo broken >&2; exit 1"), **home) == "definitions"
    assert not list((tmp_path / "home").rglob("*.so*"))


@KERNELS
def test_one_openmp_runtime_is_mapped() -> None:
    mapped = python(MAPPED).split()
    assert len(mapped) == 1, mapped


@pytest.mark.parametrize("body", ["exit 0", 'while [ "$1" != -o ]; do shift; done; echo garbage > "$2"'])
def test_a_compiler_that_only_says_it_worked(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", script(tmp_path / "odd", body))
    monkeypatch.setenv("FOURFOLD_HOME", str(tmp_path / "home"))
    assert load() is None


@KERNELS
def test_a_home_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("FOURFOLD_HOME", str(tmp_path / "file"))
    assert load() is None


@KERNELS
def test_built_once_with_the_options_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second process finds the file of the first; other options make another."""
    real = os.environ.get("CXX") or "g++"
    log, home = tmp_path / "log", tmp_path / "home"
    wrapper = script(tmp_path / "noting", f'echo "$@" >> {log}; exec {real} "$@"')
    monkeypatch.setenv("FOURFOLD_HOME", str(home))
    for options, runs in (("", 1), ("", 1), (" -O1 -DASKED='a b'", 2)):
        monkeypatch.setenv("CXX", wrapper + options)
        assert load() is not None
        assert len(log.read_text().splitlines()) == runs
    assert log.read_text().splitlines()[1].startswith("-O1 -DASKED=a b ")
    assert len(list(home.rglob("*"))) == 3  # the folder and two files: nothing half-made is left


@KERNELS
def test_another_openmp_runtime_than_torchs_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two would hold each other up; and threads counted by one would overrun what was made for the other's."""
    monkeypatch.setattr(native, "_openmp", id)
    assert load() is None


@KERNELS
def test_ready_wants_one_format_on_the_processor() -> None:
    one, half = torch.ones(2), torch.ones(2).bfloat16()
    assert native.ready(one)
    assert native.ready(one, torch.zeros(3, 4))
    assert native.ready(half, half)
    for others in (
        (one, half),
        (half, one),
        (one.double(),),
        (one.half(),),
        (one.long(),),
        (one.to("meta"),),
        (one, one.to("meta")),
    ):
        assert not native.ready(*others)


def everything(dtype: torch.dtype) -> list[Tensor]:
    """Outputs and gradients of every operation that has kernels, from the same numbers each time."""
    generator = torch.Generator().manual_seed(3)

    def leaf(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(shape, generator=generator).to(kind).requires_grad_()

    tokens, n, d = 77, 4, 32
    streams, fn, base, scale = leaf(tokens, n, d), *(leaf(*size, kind=torch.float32) for size in ((24, n * d), (24,), (3,)))
    norm, gate_up, down = leaf(d), ResidentStore(5, 24, d), ResidentStore(5, d, 12)
    for store in (gate_up, down):
        store.weight = torch.nn.Parameter(leaf(*store.shape).detach())
    y, post, comb, same = read(streams, fn, base, scale, 20, 1e-6, 1e-6)
    normed = rms_norm(y, norm, 1e-6)
    mask = torch.ones(1, tokens, tokens, dtype=torch.bool).tril()
    q = normed.view(1, tokens, 4, 8)
    attended, mass = attend_in_parts(q, q[:, :, :2], q[:, :, 2:], mask, 0.3, wants_mass=True)
    ids = torch.rand(tokens, 5, generator=generator).argsort(-1)[:, :2]
    routed = grouped_experts(attended.flatten(2)[0].contiguous(), ids, post[:, :2], gate_up, down)
    written = write(same, routed, post, comb)
    loss = cross_entropy(written[:, 0], leaf(50, d), torch.arange(tokens) % 50, 1.0)
    scores = index_scores(q.detach(), q[:, :, 0].detach(), fn[:4, :tokens].T[None], mask)
    loss = loss + index_kl(scores, mass, mask)
    chosen = newest_topk(scores.detach().masked_fill(~mask, -torch.inf), 9)
    leaves = [streams, fn, base, scale, norm, gate_up.weight, down.weight]
    return [written.detach(), mass, loss.detach(), chosen.float(), *torch.autograd.grad(loss, leaves)]


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_every_run_gives_the_same_bits(threads: int, dtype: torch.dtype, on_threads: Callable[[int], None]) -> None:
    on_threads(threads)
    first = everything(dtype)
    for _ in range(5):
        assert all(torch.equal(one, two) for one, two in zip(first, everything(dtype), strict=True))


@KERNELS
def test_threads_change_no_more_than_the_order_of_sums(on_threads: Callable[[int], None]) -> None:
    """More threads than blocks of tokens, too: 77 tokens are five blocks of sixteen."""
    on_threads(1)
    expected = everything(torch.float32)
    for threads in (2, 5, 7):
        on_threads(threads)
        for one, two in zip(everything(torch.float32), expected, strict=True):
            assert_close(one, two, f"{threads} threads")


@KERNELS
def test_other_python_threads_may_compute_too(on_threads: Callable[[int], None]) -> None:
    """OpenMP counts threads for each of Python's; sums by thread must have room for all of them."""
    on_threads(2)
    found: list[list[Tensor]] = []
    workers = [threading.Thread(target=lambda: found.append(everything(torch.float32))) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(found) == 2
    for values in found:
        for one, two in zip(values, everything(torch.float32), strict=True):
            assert_close(one, two)


def test_whole_numbers_may_be_given_for_settings(kernels: Calls) -> None:
    """An int would travel to a kernel in another register than the float it waits for."""
    x, weight = torch.randn(4, 16), torch.randn(16)
    assert_close(rms_norm(x, weight, 1), rms_norm_definition(x, weight, 1))
    q, mask = torch.randn(1, 4, 2, 8), torch.ones(1, 4, 4, dtype=torch.bool)
    assert_close(attend_in_parts(q, q, q, mask, 1)[0], attend_definition(q, q, q, mask, 1)[0])
    site = torch.randn(4, 2, 16), torch.randn(8, 32), torch.randn(8), torch.ones(3)
    for mine, expected in zip(read(*site, 5, 1, 2), read_definition(*site, 5, 1, 2), strict=True):
        assert_close(mine, expected)
    loss = cross_entropy(x, torch.eye(16), torch.arange(4), 4)
    assert_close(loss, cross_entropy_definition(x, torch.eye(16), torch.arange(4), 4))


@KERNELS
def test_compiled_code_uses_the_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.compile cannot look into a kernel, and fuses the definition itself."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(native, "call", lambda *arguments: pytest.fail(f"{arguments[0]} was called"))
    x, weight = torch.randn(4, 6), torch.randn(6)
    assert torch.equal(rms_norm(x, weight, 1e-6), rms_norm_definition(x, weight, 1e-6))
