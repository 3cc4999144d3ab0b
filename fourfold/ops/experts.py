"""Routed feed-forward: y_t = Σ_k w_{t,k} FFN_{e(t,k)}(x_t), FFN(x) = W_down(SiLU(W_gate x) ⊙ W_up x) (2401.06066, equation 9).

Every token reaches every expert chosen for it; nothing has a capacity.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.ops.linear import linear
from fourfold.weights.stores import Store


def swiglu(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """x [..., d]; gate_up [2f, d] with the gate first; down [d, f]."""
    gate, up = linear(x, gate_up).chunk(2, dim=-1)
    return linear(F.silu(gate) * up, down)


def experts_definition(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Store, down: Store) -> Tensor:
    """x [N, d], ids and weights [N, k], stores [E, 2f, d] and [E, d, f] -> [N, d], one token and one expert at a time."""
    rows = []
    for token, chosen, share in zip(x, ids, weights, strict=True):
        outputs = [swiglu(token, gate_up.fetch(e), down.fetch(e)) for e in chosen]
        rows.append(sum(s * y for s, y in zip(share, outputs, strict=True)))
    return torch.stack(rows)


def grouped_experts(x: Tensor, ids: Tensor, weights: Tensor, gate_up: Store, down: Store) -> Tensor:
    """`experts_definition` with the tokens sorted by expert, so that each expert is one matrix product."""
    tokens, chosen = ids.shape
    order = ids.flatten().argsort(stable=True)
    counts = torch.bincount(ids.flatten(), minlength=gate_up.shape[0])
    used = counts.nonzero()[:, 0]
    if 2 * len(used) < gate_up.shape[0]:  # few are needed: fetch those alone
        stacks, sizes = (gate_up.fetch(used), down.fetch(used)), counts[used].tolist()
    else:
        stacks, sizes = (gate_up.all(), down.all()), counts.tolist()
    groups = x[order // chosen].split(sizes)
    # unbind, not stack[e]: indexing would build a whole zero gradient for every expert
    outputs = [swiglu(*each) for each in zip(groups, stacks[0].unbind(), stacks[1].unbind(), strict=True) if len(each[0])]
    sorted_rows = torch.cat(outputs)
    rows = sorted_rows[order.argsort()].view(tokens, chosen, -1)
    return (rows * weights[..., None].to(rows.dtype)).sum(1)
