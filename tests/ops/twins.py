"""A fast operation beside its definition: outputs and all gradients, within the bounds of tests/compare.py."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tests.compare import assert_close

Form = Callable[..., Tensor | tuple[Tensor, ...]]
FORMATS = [torch.float32, torch.bfloat16]
SMALL = 1e-2  # gradients below it are compared as they are, others relative to their largest number


def assert_twins(
    fast: Form, definition: Form, leaves: Sequence[Tensor], names: str, what: str = "", dtype: torch.dtype | None = None
) -> None:
    """`fast(*leaves)` is `definition(*leaves)`, and so are the gradients of those leaves that ask for one (`names`: a word each).

    Leaves in bf16 are widened for the definition: a kernel may round what it returns, not what it computes with. `dtype` gives the
    bound for everything, where what lies between several operations is rounded too.
    """
    mine = _tuple(fast(*leaves))
    exact = [leaf.detach().float().requires_grad_(leaf.requires_grad) if leaf.is_floating_point() else leaf for leaf in leaves]
    expected = _tuple(definition(*exact))
    for i, (one, two) in enumerate(zip(mine, expected, strict=True)):
        assert_close(one, two, f"{what} output {i}", dtype)
    wanted = [i for i, leaf in enumerate(leaves) if leaf.requires_grad]
    directions = [torch.randn(out.shape).to(out.dtype) for out in mine]
    grads = gradients(mine, directions, [leaves[i] for i in wanted])
    exact_grads = gradients(expected, [d.float() for d in directions], [exact[i] for i in wanted])
    for i, one, two in zip(wanted, grads, exact_grads, strict=True):
        assert one.dtype == leaves[i].dtype
        size = two.abs().max().clamp(SMALL, 1.0) if two.numel() else 1.0
        assert_close(one / size, two / size, f"{what} gradient of {names.split()[i]}", dtype)


def gradients(outputs: Sequence[Tensor], directions: Sequence[Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """Of Σ output · direction, over the outputs that have a gradient."""
    pairs = [pair for pair in zip(outputs, directions, strict=True) if pair[0].requires_grad]
    return torch.autograd.grad([out for out, _ in pairs], leaves, [direction for _, direction in pairs])


def _tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
