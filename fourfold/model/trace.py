"""What a forward pass may write down on its way: for the losses, for replay and for plots."""

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class LayerTrace:
    """One layer's record. S sequences, L queries, K keys, N tokens, E experts, k chosen, n streams.

    Index scores and mask stay None where nothing had to be chosen and no attention mass was asked for.
    """

    expert_ids: Tensor | None = None  # [N, k]
    expert_scores: Tensor | None = None  # [N, E], sums to one; has a gradient
    index_scores: Tensor | None = None  # [S, L, K]; has a gradient, to the indexer alone
    index_mask: Tensor | None = None  # [S, L, K] bool: visible keys in dense mode, chosen ones in sparse mode
    attention_mass: Tensor | None = None  # [S, L, K] detached: mean over heads, rows sum to one over index_mask
    stream_mixing: list[Tensor] = field(default_factory=list)  # [N, n, n] (source, target) detached, one per site

    def extend(self, name: str, part: Tensor) -> None:
        """Add the next chunk of queries to a record [S, L, K]."""
        before = getattr(self, name)
        setattr(self, name, part if before is None else torch.cat([before, part], dim=1))


@dataclass
class Trace:
    """Passed to a forward, which appends a LayerTrace per layer (multi-token prediction layers last)."""

    attention_mass: bool = False  # ask for it and for all index scores: it takes the plain attention, which is slower
    layers: list[LayerTrace] = field(default_factory=list)
