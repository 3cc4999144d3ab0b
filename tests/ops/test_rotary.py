"""Turning by position: the kernel against its definition, for whole tensors and for parts of them."""

import pytest
import torch

from fourfold.ops.rotary import rotate, rotate_definition
from tests.compare import assert_close
from tests.ops.conftest import Calls
from tests.ops.twins import FORMATS


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("shape", [(7, 12), (7, 3, 12), (1, 5, 64), (0, 2, 4)])
def test_turning_is_its_definition(kernels: Calls, shape: tuple[int, ...], interleaved: bool, dtype: torch.dtype) -> None:
    whole = torch.randn(*shape[:-1], shape[-1] + 6).to(dtype)
    cos, sin = torch.randn(2, shape[0], shape[-1] // 2)
    for x in (whole[..., 3:-3], whole[..., 3:-3].contiguous()):
        with torch.no_grad():
            found = rotate(x, cos, sin, interleaved)
        assert found.dtype == dtype
        assert_close(found, rotate_definition(x.float(), cos, sin, interleaved), dtype=dtype)
        kernels.expect("rotate")


def test_gradients_go_through_the_definition(kernels: Calls) -> None:
    x, cos, sin = torch.randn(3, 2, 8, requires_grad=True), torch.ones(3, 4), torch.zeros(3, 4)
    rotate(x, cos, sin, True).sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))
    assert not kernels
