"""Muon (Jordan 2024; 2502.16982): momentum whose matrices are orthogonalised before they move the weights.

Stacked experts [E, a, b] are E matrices, a gate and an up projection that lie in one tensor are two, and all matrices of one
shape are worked on as one stack: a model of hundreds of small matrices then costs a few batched products.
`newton_schulz_plain` is the definition, `newton_schulz` the fast twin.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # quintic with the steepest start; singular values end in about 0.7-1.2
STEPS = 5


def newton_schulz_plain(matrix: Tensor) -> Tensor:
    """Nearly the orthogonal factor U V^T of one matrix [a, b], as the paper writes it."""
    a, b, c = COEFFICIENTS
    x = matrix / (matrix.norm() + 1e-7)
    if x.shape[0] > x.shape[1]:
        return newton_schulz_plain(matrix.T).T
    for _ in range(STEPS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def newton_schulz(stack: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """`newton_schulz_plain` of every matrix of a stack [M, a, b], computed in `dtype`, returned in fp32."""
    a, b, c = COEFFICIENTS
    transposed = stack.shape[-2] > stack.shape[-1]
    x = stack.mT if transposed else stack
    x = (x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)).to(dtype).contiguous()
    for _ in range(STEPS):
        gram = torch.bmm(x, x.mT)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if transposed else x).float()


class Muon(torch.optim.Optimizer):
    """Muon over parameters of shape [a, b] or [E, a, b]; its step has AdamW's size (RMS about 0.2), so both share one lr.

    A group's `parts` says how many matrices [a / parts, b] lie one below the other in each [a, b].
    """

    def __init__(
        self,
        params: Iterable,
        lr: float = 1e-3,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "parts": 1})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One Nesterov step for every parameter that has a gradient."""
        for group in self.param_groups:
            by_shape: dict[tuple[int, int], list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(tuple(parameter.shape[-2:]), []).append(parameter)
            for parameters in by_shape.values():
                self._step_stack(parameters, group)

    def _step_stack(self, parameters: list[Tensor], group: dict) -> None:
        rows, columns = parameters[0].shape[-2] // group["parts"], parameters[0].shape[-1]
        stack = torch.cat([self._nesterov(p, group["momentum"]).reshape(-1, rows, columns) for p in parameters])
        counts = [p.numel() // (rows * columns) for p in parameters]
        for parameter, update in zip(parameters, newton_schulz(stack, self.dtype).split(counts), strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(update.reshape(parameter.shape), alpha=-group["lr"] * 0.2 * max(rows, columns) ** 0.5)

    def _nesterov(self, parameter: Tensor, momentum: float) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        state["momentum"].mul_(momentum).add_(parameter.grad)
        return parameter.grad.add(state["momentum"], alpha=momentum)
