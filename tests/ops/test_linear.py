"""The one matrix product: against PyTorch's own, for plain and packed weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ops.int8 import Int8Weight
from fourfold.ops.linear import FEW, Linear, linear
from tests.compare import assert_close
from tests.ops.conftest import Calls
from tests.ops.twins import FORMATS


class Packed:
    """A weight kept in a form of its own: int8 with a scale for each row."""

    def __init__(self, weight: Tensor) -> None:
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.whole = (weight / self.scale).round().to(torch.int8)

    def unpack(self) -> Tensor:
        return self.whole.float() * self.scale

    def matmul(self, x: Tensor) -> Tensor:
        return (x @ self.whole.float().T) * self.scale[:, 0]


@pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7)])
def test_linear_takes_plain_and_packed_weights(shape: tuple[int, ...]) -> None:
    x, weight, bias = torch.randn(*shape), torch.randn(5, 7), torch.randn(5)
    packed = Packed(weight)
    assert torch.equal(linear(x, weight, bias), F.linear(x, weight, bias))
    assert_close(linear(x, packed), F.linear(x, packed.unpack()))
    assert_close(linear(x, packed, bias), F.linear(x, packed.unpack(), bias))


@torch.inference_mode()
def test_rows_of_another_width_are_refused() -> None:
    """By the kernels for few rows too, which see no shapes."""
    for weight in (torch.randn(32, 128), Int8Weight(torch.randn(32, 128))):
        with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
            linear(torch.randn(2, 64), weight)


def test_linear_module() -> None:
    plain, biased = Linear(4, 3), Linear(4, 3, bias=True)
    assert plain.bias is None
    assert biased.weight.shape == (3, 4)
    torch.nn.init.normal_(biased.weight)
    torch.nn.init.normal_(biased.bias)
    x = torch.randn(2, 4)
    assert torch.equal(biased(x), F.linear(x, biased.weight, biased.bias))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("outputs", [1, 16, 37])
def test_few_rows_are_many(kernels: Calls, outputs: int, dtype: torch.dtype) -> None:
    """Every number of rows that has a kernel, and one more; with kernels a row gives the same bits whatever stands beside it."""
    x, weight, bias = (torch.randn(*shape).to(dtype) for shape in ((FEW + 1, 48), (outputs, 48), (outputs,)))
    expected = F.linear(x.float(), weight.float(), bias.float())
    with torch.no_grad():
        found = {count: linear(x[:count], weight, bias) for count in range(1, FEW + 2)}
    for count, rows in found.items():
        assert rows.dtype == dtype
        assert_close(rows, expected[:count], f"{count} rows", dtype)
        assert not kernels.available or count > FEW or torch.equal(rows[:1], found[1])
    kernels.expect("linear_few")
    linear(x[:1], weight.requires_grad_())
    assert not kernels
