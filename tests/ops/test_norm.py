"""RMSNorm against PyTorch's own and against its definition, outputs and gradients, for every shape and format."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fourfold.ops.norm import RMSNorm, rms_norm, rms_norm_definition
from tests.compare import assert_close
from tests.ops.conftest import Calls
from tests.ops.twins import FORMATS, assert_twins

BOTH = ("rms_norm_forward", "rms_norm_backward")


@pytest.mark.parametrize("dtype", FORMATS)
def test_norm_is_pytorchs(dtype: torch.dtype, kernels: Calls) -> None:
    norm = RMSNorm(16, 1e-5).to(dtype)
    torch.nn.init.normal_(norm.weight)
    x = (3 * torch.randn(4, 5, 16)).to(dtype)
    for form in (norm, lambda x: rms_norm_definition(x, norm.weight, 1e-5)):
        assert form(x).dtype == dtype
        assert_close(form(x), F.rms_norm(x.float(), (16,), norm.weight.float(), 1e-5), dtype=dtype)


@given(
    leading=st.lists(st.integers(1, 7), max_size=3),
    streams=st.integers(0, 4),
    width=st.integers(2, 70),
    dtype=st.sampled_from(FORMATS),
)
def test_norm_is_its_definition_with_gradients(
    kernels: Calls, leading: list[int], streams: int, width: int, dtype: torch.dtype
) -> None:
    """x [..., d] with a weight [d], and x [..., n, d] with one for each stream."""
    trailing = (streams, width) if streams else (width,)
    x, weight = (3 * torch.randn(*leading, *trailing)).to(dtype), torch.randn(trailing).to(dtype)
    leaves = [x.requires_grad_(), weight.requires_grad_()]
    assert_twins(lambda *a: rms_norm(*a, 1e-5), lambda *a: rms_norm_definition(*a, 1e-5), leaves, "x weight")
    kernels.expect(*BOTH)


def test_rows_of_one_number(kernels: Calls) -> None:
    """Their gradient is what eps leaves of a difference of equals, so it is compared by the comparator's own bound only."""
    x, weight = (3 * torch.randn(40, 1)).requires_grad_(), torch.randn(1, requires_grad=True)
    outputs = [form(x, weight, 1e-5) for form in (rms_norm, rms_norm_definition)]
    assert_close(*outputs)
    for mine, expected in zip(*(torch.autograd.grad(out.square().sum(), (x, weight)) for out in outputs), strict=True):
        assert_close(mine, expected)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_either_may_be_frozen(frozen: str, kernels: Calls) -> None:
    leaves = [torch.randn(5, 12).requires_grad_(frozen != "x"), torch.randn(12).requires_grad_(frozen != "weight")]
    assert_twins(lambda *a: rms_norm(*a, 1e-5), lambda *a: rms_norm_definition(*a, 1e-5), leaves, "x weight")


def test_another_format_than_the_weights_falls_back(kernels: Calls) -> None:
    x, weight = torch.randn(3, 8).bfloat16(), torch.randn(8)
    assert torch.equal(rms_norm(x, weight, 1e-5), rms_norm_definition(x, weight, 1e-5))
    wide = x.double()
    assert torch.equal(rms_norm(wide, weight.double(), 1e-5), rms_norm_definition(wide, weight.double(), 1e-5))
    assert not kernels


def test_weights_that_do_not_fit_are_left_to_the_definition(kernels: Calls) -> None:
    x = torch.randn(6, 3, 8)
    one_for_all = torch.randn(1, 8)
    assert_close(rms_norm(x, one_for_all, 1e-5), rms_norm_definition(x, one_for_all, 1e-5))
    for wrong in (torch.randn(4), torch.randn(16), torch.randn(2, 8)):
        with pytest.raises(RuntimeError):
            rms_norm(x, wrong, 1e-5)
    assert not kernels


def test_norm_takes_a_view_and_leaves_it_alone(kernels: Calls) -> None:
    whole = torch.randn(6, 3, 20)
    kept, weight = whole.clone(), torch.randn(8, requires_grad=True)
    view = whole[:, 1, 4:12].requires_grad_()
    out = rms_norm(view, weight, 1e-6)
    assert_close(out, rms_norm_definition(kept[:, 1, 4:12], weight, 1e-6))
    out.sum().backward()
    assert torch.equal(whole, kept)
    kernels.expect(*BOTH)


def test_a_gradient_may_be_a_view(kernels: Calls) -> None:
    """What arrives from a sum is one number spread over all places."""
    x, weight = torch.randn(4, 6, 10, requires_grad=True), torch.randn(10, requires_grad=True)
    for form in (lambda out: out.sum(), lambda out: (out.transpose(0, 1) * torch.arange(4.0)[None, :, None]).sum()):
        mine, expected = (torch.autograd.grad(form(f(x, weight, 1e-6)), (x, weight)) for f in (rms_norm, rms_norm_definition))
        for one, two in zip(mine, expected, strict=True):
            assert_close(one, two)


def test_norm_of_zeros_and_of_huge_numbers_is_finite(kernels: Calls) -> None:
    for value in (0.0, 1e-30, 1e15):
        x, weight = torch.full((2, 8), value, requires_grad=True), torch.ones(8, requires_grad=True)
        out = rms_norm(x, weight, 1e-6)
        out.sum().backward()
        assert out.isfinite().all()
        assert x.grad.isfinite().all()
        assert weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_not_a_number_stays_in_its_row(dtype: torch.dtype, kernels: Calls) -> None:
    x = torch.randn(4, 20).to(dtype)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    out = rms_norm(x, torch.ones(20, dtype=dtype), 1e-6)
    assert out[1].isnan().all()
    assert out[2, 5].isnan()
    assert out[[0, 3]].isfinite().all()


def test_norm_is_computed_in_fp32(kernels: Calls) -> None:
    """Squares of large bf16 numbers would lose nothing in range but all of their precision."""
    x = (torch.randn(1, 4096) + 300).bfloat16()
    exact = x.double() / (x.double().square().mean(-1, keepdim=True) + 1e-6).sqrt()
    for weight in (torch.ones(4096), torch.ones(4096, dtype=torch.bfloat16)):
        assert (rms_norm(x, weight, 1e-6).double() - exact).abs().max() <= 2**-8
