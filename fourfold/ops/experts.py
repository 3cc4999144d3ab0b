"""Routed feed-forward: y_t = Σ_k w_{t,k} FFN_{e(t,k)}(x_t), FFN(x) = W_down(SiLU(W_gate x) ⊙ W_up x) (2401.06066, equation 9).

Every token reaches every expert chosen for it; nothing has a capacity. With a limit (V4's swiglu_limit), W_gate x is cut above it
and W_up x at both sides, so that no product of the two runs away.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ops import native
from fourfold.ops.linear import linear
from fourfold.weights.stores import ResidentStore, Store

FEW = 8  # tokens, whose experts are hardly ever the same
STEP = 64  # in training, an expert's group of rows is filled up to a multiple of it: the library compiles every new shape


def silu_gate_definition(gate_up: Tensor, limit: float | None = None) -> Tensor:
    """SiLU(gate) ⊙ up of [..., 2f] with the gate first -> [..., f]; gate at most `limit`, up within ±limit."""
    gate, up = gate_up.chunk(2, dim=-1)
    if limit is not None:
        gate, up = gate.clamp(max=limit), up.clamp(-limit, limit)
    return F.silu(gate) * up


class _SiluGate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_up: Tensor, limit: float | None) -> Tensor:
        gate_up = gate_up.contiguous()
        ctx.save_for_backward(gate_up)
        ctx.limit = limit
        return _silu_gate(gate_up, limit)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _silu_gate_backward(ctx.saved_tensors[0], grad.contiguous(), ctx.limit), None


def silu_gate(gate_up: Tensor, limit: float | None = None) -> Tensor:
    """`silu_gate_definition` in one pass where there are kernels."""
    if not native.ready(gate_up):
        return silu_gate_definition(gate_up, limit)
    return _SiluGate.apply(gate_up, limit) if torch.is_grad_enabled() else _silu_gate(gate_up.contiguous(), limit)


def _silu_gate(gate_up: Tensor, limit: float | None) -> Tensor:
    width = gate_up.shape[-1] // 2
    out = gate_up.new_empty(*gate_up.shape[:-1], width)
    native.call("swiglu_forward", out.dtype, gate_up, out, out.numel() // width, width, _bound(limit))
    return out


def _silu_gate_backward(gate_up: Tensor, arriving: Tensor, limit: float | None) -> Tensor:
    width, grad = arriving.shape[-1], torch.empty_like(gate_up)
    native.call("swiglu_backward", grad.dtype, gate_up, arriving, grad, arriving.numel() // width, width, _bound(limit))
    return grad


def _bound(limit: float | None) -> float:
    return math.inf if limit is None else float(limit)


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor, limit: float | None = None) -> Tensor:
    """x [..., d]; gate_up [2f, d] with the gate first; down [d, f]."""
    return linear(silu_gate(linear(x, gate_up), limit), down)


def experts_definition(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Store, down: Store, limit: float | None = None) -> Tensor:
    """x [N, d], ids and weights [N, k], stores [E, 2f, d] and [E, d, f] -> [N, d], one token and one expert at a time."""
    rows = []
    for token, chosen, share in zip(x, ids, weights, strict=True):
        outputs = [linear(silu_gate_definition(linear(token, gate_up.fetch(e)), limit), down.fetch(e)) for e in chosen]
        rows.append(sum(s * y for s, y in zip(share, outputs, strict=True)))
    return torch.stack(rows)


def grouped_experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Store, down: Store, limit: float | None = None) -> Tensor:
    """`experts_definition` with the tokens sorted by expert, so that each expert is one matrix product."""
    tokens, chosen = ids.shape
    resident = isinstance(gate_up, ResidentStore) and isinstance(down, ResidentStore)
    if resident and native.ready(x, gate_up.all(), down.all()):
        if torch.is_grad_enabled():
            return _GroupedExperts.apply(x, ids, weights.float(), gate_up.all(), down.all(), limit)
        if tokens <= FEW and not gate_up.shape[2] % native.LANES and not down.shape[2] % native.LANES:
            return _few_experts(x.contiguous(), ids.contiguous(), weights.float().contiguous(), gate_up.all(), down.all(), limit)
    order = ids.flatten().argsort(stable=True)
    counts = torch.bincount(ids.flatten(), minlength=gate_up.shape[0])
    used = counts.nonzero()[:, 0]
    if 2 * len(used) < gate_up.shape[0] and not resident:  # few are needed: fetch those alone
        stacks, sizes = (gate_up.fetch(used), down.fetch(used)), counts[used].tolist()
    else:
        stacks, sizes = (gate_up.all(), down.all()), counts.tolist()
    groups = x[order // chosen].split(sizes)
    # unbind, not stack[e]: indexing would build a whole zero gradient for every expert
    each = zip(groups, stacks[0].unbind(), stacks[1].unbind(), strict=True)
    outputs = [swiglu(rows, wide, narrow, limit) for rows, wide, narrow in each if len(rows)]
    sorted_rows = torch.cat(outputs)
    rows = sorted_rows[order.argsort()].view(tokens, chosen, -1)
    return (rows * weights[..., None].to(rows.dtype)).sum(1)


def _few_experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, limit: float | None) -> Tensor:
    """Without sorting anything: each token by itself, so that what comes out of it does not depend on the others."""
    out, (_, wide, width) = torch.empty_like(x), gate_up.shape
    native.call("experts_few", x.dtype, x, ids, weights, gate_up, down, out, *ids.shape, wide // 2, width, _bound(limit))
    return out


class _GroupedExperts(torch.autograd.Function):
    """For training: rows are sorted into groups that begin at multiples of STEP, with zeros between them.

    Zeros stay zeros through SwiGLU and back, so that they add nothing anywhere.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, ids: Tensor, weights: Tensor, gate_up: Tensor, down: Tensor, limit: float | None) -> Tensor:
        x, ids, weights, (experts, wide, width) = x.contiguous(), ids.contiguous(), weights.contiguous(), gate_up.shape
        tokens, chosen = ids.shape
        places, starts = torch.empty_like(ids), ids.new_empty(experts + 1)
        native.call("expert_places", None, ids, places, starts, ids.numel(), experts, STEP)
        ctx.groups, ctx.limit = _groups(starts), limit
        rows = x.new_zeros(int(starts[-1]), width)
        native.call("experts_spread", x.dtype, x, places, None, rows, tokens, chosen, width)
        hidden = x.new_empty(len(rows), wide)
        for e, part in ctx.groups:
            torch.mm(rows[part], gate_up[e].T, out=hidden[part])
        middle = _silu_gate(hidden, limit)
        read = torch.empty_like(rows)
        for e, part in ctx.groups:
            torch.mm(middle[part], down[e].T, out=read[part])
        out = torch.empty_like(x)
        native.call("experts_combine", x.dtype, read, places, weights, out, tokens, chosen, width)
        ctx.save_for_backward(places, weights, rows, hidden, middle, read, gate_up, down)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        places, weights, rows, hidden, middle, read, gate_up, down = ctx.saved_tensors
        grad, sizes = grad.contiguous(), (*weights.shape, grad.shape[-1])
        weights_grad = torch.empty_like(weights)
        native.call("experts_combine_weights", grad.dtype, read, places, grad, weights_grad, *sizes)
        read_grad = torch.zeros_like(read)
        native.call("experts_spread", grad.dtype, grad, places, weights, read_grad, *sizes)
        # A group without rows has no product to fill its gradient.
        gate_up_grad, down_grad = torch.zeros_like(gate_up), torch.zeros_like(down)
        middle_grad, rows_grad = torch.empty_like(middle), torch.empty_like(rows)
        for e, part in ctx.groups:
            torch.mm(read_grad[part].T, middle[part], out=down_grad[e])
            torch.mm(read_grad[part], down[e], out=middle_grad[part])
        hidden_grad = _silu_gate_backward(hidden, middle_grad, ctx.limit)
        for e, part in ctx.groups:
            torch.mm(hidden_grad[part].T, rows[part], out=gate_up_grad[e])
            torch.mm(hidden_grad[part], gate_up[e], out=rows_grad[part])
        x_grad = torch.empty_like(grad)
        native.call("experts_combine", grad.dtype, rows_grad, places, None, x_grad, *sizes)
        return x_grad, None, weights_grad, gate_up_grad, down_grad, None


def _groups(starts: Tensor) -> list[tuple[int, slice]]:
    """Each expert that has rows, and which rows they are."""
    edges = starts.tolist()
    return [(e, slice(a, b)) for e, (a, b) in enumerate(zip(edges, edges[1:], strict=False)) if a < b]
