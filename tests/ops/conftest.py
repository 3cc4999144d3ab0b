"""Every operation is tested twice: with the kernels, and with what is used where there are none."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from fourfold.ops import native


class Calls(set):
    """Names of the kernels that ran, without their formats; `available` is false where a test has them switched off."""

    available = True

    def expect(self, *names: str) -> None:
        """Exactly these ran since the last time, or none where they are switched off."""
        assert self == (set(names) if self.available else set())
        self.clear()


@pytest.fixture
def built(fourfold_home: Path) -> None:
    """For tests that need the kernels. In CI there must be a compiler."""
    if native.kernels() is None:
        wanted = os.environ.get("CI") and os.environ.get("FOURFOLD_NATIVE") != "0"
        (pytest.fail if wanted else pytest.skip)("kernels are switched off, or there is no g++ to build them")


@pytest.fixture(params=["kernels", "PyTorch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Run the test with the kernels, which are then listed here as they run, and again without them."""
    called, call = Calls(), native.call
    called.available = request.param == "kernels"
    if not called.available:
        monkeypatch.setattr(native, "ready", lambda *tensors: False)
    else:
        request.getfixturevalue("built")
    monkeypatch.setattr(native, "call", lambda name, *rest: called.add(name) or call(name, *rest))
    return called


@pytest.fixture
def on_threads() -> Iterator[Callable[[int], None]]:
    """Set the number of threads for the rest of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)
