"""The one matrix product: against PyTorch's own, for plain and packed weights."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ops.linear import Linear, linear
from tests.compare import assert_close


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


def test_linear_module() -> None:
    plain, biased = Linear(4, 3), Linear(4, 3, bias=True)
    assert plain.bias is None
    assert biased.weight.shape == (3, 4)
    torch.nn.init.normal_(biased.weight)
    torch.nn.init.normal_(biased.bias)
    x = torch.randn(2, 4)
    assert torch.equal(biased(x), F.linear(x, biased.weight, biased.bias))
