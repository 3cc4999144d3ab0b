"""Read and write of residual streams = their definitions, with all gradients, for every number of streams and tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fourfold.ops import streams as ops
from tests.compare import assert_close
from tests.ops.conftest import Calls
from tests.ops.twins import FORMATS, assert_twins

EPS, HC_EPS = 1e-6, 1e-5
FORMS = (ops.read, ops.read_definition)
WRITTEN = "streams out post comb"
SITE = "streams fn base scale"


def site(tokens: int, n: int, d: int, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """Streams [N, n, d], fn, base and scale, spread so that no weight is near the end of its range."""
    sizes = (2 + n) * n, n * d
    leaves = [(2 * torch.randn(tokens, n, d)).to(dtype), torch.randn(sizes) / sizes[1] ** 0.5, torch.randn(sizes[0])]
    return [leaf.requires_grad_() for leaf in (*leaves, torch.rand(3) + 0.5)]


def called(what: str, n: int) -> set[str]:
    return {f"streams_{what}_{way}_{n}" for way in ("forward", "backward")}


@given(tokens=st.integers(1, 50), n=st.sampled_from(ops.COUNTS), vectors=st.integers(1, 5), iterations=st.integers(1, 6))
def test_read_is_its_definition_with_gradients(kernels: Calls, tokens: int, n: int, vectors: int, iterations: int) -> None:
    for dtype in FORMATS:
        forms = (lambda *a, f=f: f(*a, iterations, HC_EPS, EPS) for f in FORMS)
        assert_twins(*forms, site(tokens, n, 16 * vectors, dtype), SITE, f"{dtype}")
    kernels.expect(*called("read", n))


@given(tokens=st.integers(1, 50), n=st.sampled_from(ops.COUNTS), vectors=st.integers(1, 5), dtype=st.sampled_from(FORMATS))
def test_write_is_its_definition_with_gradients(kernels: Calls, tokens: int, n: int, vectors: int, dtype: torch.dtype) -> None:
    streams, out = torch.randn(tokens, n, 16 * vectors).to(dtype), torch.randn(tokens, 16 * vectors).to(dtype)
    leaves = [leaf.requires_grad_() for leaf in (streams, out, torch.randn(tokens, n), torch.randn(tokens, n, n))]
    assert_twins(ops.write, ops.write_definition, leaves, WRITTEN)
    kernels.expect(*called("write", n))


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("tokens", [1, 15, 16, 17, 31, 33])
def test_all_iterations_of_a_whole_site(tokens: int, dtype: torch.dtype, kernels: Calls) -> None:
    """As a layer does it: what is written back starts from the streams that `read` gave, and their gradients meet there."""

    def forms(read, write):
        def whole(streams: Tensor, fn: Tensor, base: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
            y, post, comb, streams = read(streams, fn, base, scale, 20, HC_EPS, EPS)
            return write(streams, (y.float() @ weight.float()).tanh().to(y.dtype), post, comb)

        return whole

    leaves = [*site(tokens, 4, 32, dtype), (torch.randn(32, 32) / 6).to(dtype).requires_grad_()]
    assert_twins(forms(ops.read, ops.write), forms(ops.read_definition, ops.write_definition), leaves, f"{SITE} weight", "", dtype)
    kernels.expect(*called("read", 4), *called("write", 4))


@pytest.mark.parametrize(("n", "d"), [(1, 16), (3, 32), (5, 16), (8, 16), (2, 15), (4, 22), (4, 8)])
def test_other_counts_and_widths_fall_back(n: int, d: int, kernels: Calls) -> None:
    leaves = site(7, n, d)
    assert_twins(*(lambda *a, f=f: f(*a, 5, HC_EPS, EPS) for f in FORMS), leaves, SITE)
    written = [torch.randn(7, n, d), torch.randn(7, d), torch.randn(7, n), torch.randn(7, n, n)]
    assert torch.equal(ops.write(*written), ops.write_definition(*written))
    assert not kernels


@pytest.mark.parametrize("place", range(4))
def test_parameters_in_another_format_fall_back(place: int, kernels: Calls) -> None:
    """The kernels read these as fp32, whatever they are."""
    leaves = [leaf.detach() for leaf in site(5, 4, 16)]
    expected = ops.read_definition(*leaves, 3, HC_EPS, EPS)
    leaves[place] = leaves[place].double()
    for mine, theirs in zip(ops.read(*leaves, 3, HC_EPS, EPS), expected, strict=True):
        assert_close(mine, theirs)
    assert not kernels


@pytest.mark.parametrize("frozen", [(0,), (1, 2, 3), (0, 1), (2,)])
def test_some_may_be_frozen(frozen: tuple[int, ...], kernels: Calls) -> None:
    leaves = site(19, 4, 16)
    for i in frozen:
        leaves[i].requires_grad_(False)
    assert_twins(*(lambda *a, f=f: f(*a, 5, HC_EPS, EPS) for f in FORMS), leaves, SITE)


@pytest.mark.parametrize("only", range(4))
def test_what_is_not_used_has_no_gradient(only: int, kernels: Calls) -> None:
    """A loss may come from any one of the four outputs."""
    leaves = site(19, 4, 16)
    for dtype in FORMATS:
        leaves[0] = leaves[0].detach().to(dtype).requires_grad_()
        forms = (lambda *a, f=f: f(*a, 5, HC_EPS, EPS)[only] + 0.0 * sum(p.sum() for p in a).to(a[0].dtype) for f in FORMS)
        assert_twins(*forms, leaves, SITE, f"output {only} of {dtype}")


def test_expanded_and_transposed_inputs(kernels: Calls) -> None:
    """The embedding comes as one row seen n times; other views are read as they look."""
    _, fn, base, scale = site(9, 4, 16)
    row = torch.randn(9, 1, 16).requires_grad_()
    forms = (lambda row, *a, f=f: f(row.expand(-1, 4, -1), *a, 5, HC_EPS, EPS) for f in FORMS)
    assert_twins(*forms, [row, fn, base, scale], SITE)
    turned = torch.randn(16, 4, 9).requires_grad_()
    forms = (lambda x, fn, base, scale, f=f: f(x.permute(2, 1, 0), fn.T.contiguous().T, base, scale, 5, HC_EPS, EPS) for f in FORMS)
    assert_twins(*forms, [turned, fn, base, scale], SITE)
    every_other = torch.randn(48).requires_grad_()
    forms = (lambda x, b, f=f: f(x.expand(-1, 4, -1), fn.detach(), b[::2], scale.detach(), 5, HC_EPS, EPS) for f in FORMS)
    assert_twins(*forms, [row.detach(), every_other], "streams base")


def test_the_streams_given_back_are_the_streams(kernels: Calls) -> None:
    leaves = site(6, 2, 16)
    streams = ops.read(*leaves, 3, HC_EPS, EPS)[3]
    assert torch.equal(streams, leaves[0])
    with torch.no_grad():
        assert torch.equal(ops.read(*leaves, 3, HC_EPS, EPS)[3], leaves[0])


@pytest.mark.parametrize("n", ops.COUNTS)
@pytest.mark.parametrize("size", [0.0, 1e-20, 1e4])
def test_zeros_and_large_numbers_have_finite_gradients(n: int, size: float, kernels: Calls) -> None:
    streams, fn, base, scale = site(18, n, 16)
    streams = (streams.detach() * size).requires_grad_()
    base = (base.detach() * 30).requires_grad_()  # logits far apart: sigmoids and Sinkhorn at their ends
    leaves = [streams, fn, base, scale]
    outputs = ops.read(*leaves, 20, HC_EPS, EPS)
    grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(out) for out in outputs])
    assert all(t.isfinite().all() for t in (*outputs, *grads))
    for mine, expected in zip(outputs, ops.read_definition(*leaves, 20, HC_EPS, EPS), strict=True):
        assert_close(mine, expected)


@pytest.mark.parametrize("dtype", FORMATS)
def test_what_is_not_a_number_stays_with_its_token(dtype: torch.dtype, kernels: Calls) -> None:
    """Sixteen tokens share a vector in the kernels: none may touch its neighbours."""
    leaves = [leaf.detach() for leaf in site(20, 4, 16, dtype)]
    leaves[0][7, 2, 3] = torch.nan
    others = [t for t in range(20) if t != 7]
    for out in ops.read(*leaves, 20, HC_EPS, EPS)[:3]:
        assert out[7].isnan().all()
        assert out[others].isfinite().all()


def test_weights_of_a_site_are_those_of_the_plain_sinkhorn() -> None:
    leaves = site(33, 4, 12)
    forms = (lambda *a, plain=plain: ops.site_weights(*a, 20, HC_EPS, EPS, plain) for plain in (False, True))
    assert_twins(*forms, leaves, SITE)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("n", [1, 4])
def test_projections_by_hand(n: int, dtype: torch.dtype) -> None:
    """m = (fn · u) / sqrt(mean(u²) + eps), in fp32 whatever the streams are."""
    streams, fn = (2 * torch.randn(11, n, 10)).to(dtype), torch.randn((2 + n) * n, 10 * n)
    mixes = ops.mix_weights(streams, fn, EPS)
    assert mixes.dtype == torch.float32
    for token, row in zip(streams.double().flatten(1), mixes, strict=True):
        assert_close(row, fn.double() @ token / (token.square().mean() + EPS).sqrt())


def test_a_weighted_sum_is_rounded_once() -> None:
    """Weights that sum to one leave equal streams as they are; in bf16 they would not."""
    streams = torch.randn(50, 1, 8).bfloat16().expand(-1, 3, -1)
    weights = torch.rand(50, 3)
    assert torch.equal(ops.weighted_sum(weights / weights.sum(-1, keepdim=True), streams), streams[:, 0])
