"""Which past tokens a query reads: all that are visible, or the lightning indexer's top-k (V3.2, section 2.1).

Selection is apart from reading. It comes a chunk of queries at a time, because at 1M tokens by 2048 the whole would be 16 GiB,
and it names positions in the sequence, so that latent and grouped-query attention read it alike.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.model.inputs import Context
from fourfold.model.rope import rotate
from fourfold.model.state import Fields, LayerState
from fourfold.ops.indexer import index_scores
from fourfold.ops.linear import Linear
from fourfold.ops.topk import newest_topk

GATHER_FROM = 4  # keys per chosen key from which gathering beats masking (without gradients)
SCORE_BUDGET = 1 << 26  # scores held at once, over all sequences, queries, keys and heads


@dataclass
class Selection:
    """What a chunk of queries may read. `queries`: their slice of the padded [S, L] face.

    Either `indices` [S, C, k] (ascending) with `valid` [S, C, k] bool, or None for both: everything visible.
    """

    queries: slice
    indices: Tensor | None = None
    valid: Tensor | None = None

    def part(self, part: slice) -> "Selection":
        """The selection of some of its queries, counted from its own first."""
        queries = slice(self.queries.start + part.start, self.queries.start + part.stop)
        if self.indices is None:
            return Selection(queries)
        return Selection(queries, self.indices[:, part], self.valid[:, part])

    def mask(self, visible: Tensor | None, keys: int) -> Tensor | None:
        """[S, C, keys] bool, None for all. `visible`: the queries' part of the context's mask."""
        if self.indices is None:
            return visible
        rows = torch.zeros(*self.indices.shape[:2], keys, dtype=torch.bool, device=self.indices.device)
        return rows.scatter_reduce_(-1, self.indices, self.valid, "amax")


def chunks(queries: int, cost_per_query: int, most: int | None = None) -> Iterator[slice]:
    """Slices of the queries, each at most so long, such that a chunk's scores stay within SCORE_BUDGET."""
    step = max(1, min(SCORE_BUDGET // max(cost_per_query, 1), most or queries))
    return (slice(start, min(start + step, queries)) for start in range(0, queries, step))


class Chooser(nn.Module):
    """What all indexers do with their keys: I_{t,s} = Σ_j w_{t,j} ReLU(q_{t,j} · k_s) (V3.2, equation 1), and the best of them.

    The input is detached: only the KL loss on the trace trains an indexer, and it trains nothing else (section 2.1.1). A subclass
    makes the modules `wq_b` and `weights_proj`, says how queries are rotated, and where keys come from.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = config.selection
        self.heads, self.width, self.topk = sizes.index_n_heads, sizes.index_head_dim, sizes.index_topk

    def queries(self, x: Tensor, query_input: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """Rotated queries [N, heads, width] and head weights [N, heads]."""
        queries = self.wq_b(query_input.detach()).unflatten(-1, (self.heads, self.width))
        weights = self.weights_proj(x.detach()).float() * (self.heads * self.width) ** -0.5
        return self._rotate(queries, context), weights

    def selections(
        self,
        queries: tuple[Tensor, Tensor],
        keys: Tensor,
        visible: Callable[[slice], Tensor | None],
        context: Context,
        everything: bool,
    ) -> Iterator[Selection]:
        """What each query reads of keys [S, K, width], a few queries at a time; `visible` gives their mask, None for all."""
        wanted, weights = (context.batch.pad(y) for y in queries)
        for part in chunks(context.batch.longest, wanted.shape[0] * keys.shape[1] * self.heads):
            seen = visible(part)
            scores = index_scores(wanted[:, part], keys, weights[:, part], seen)
            selection = Selection(part) if everything else self.choose(part, scores.detach(), seen)
            if context.trace is not None:
                context.layer_trace.extend("index_scores", scores)
                mask = selection.mask(seen, keys.shape[1])
                mask = torch.ones_like(scores, dtype=torch.bool) if mask is None else mask
                context.layer_trace.extend("index_mask", mask)
            yield selection

    def gathers(self, keys: int, context: Context) -> bool:
        """Whether chosen rows are read one by one. In training a mask is cheaper: the gradient of a gather is a scatter."""
        if not context.sparse or context.wants_mass or torch.is_grad_enabled():
            return False
        return keys >= GATHER_FROM * self.topk

    def choose(self, part: slice, scores: Tensor, visible: Tensor | None) -> Selection:
        """The `index_topk` best visible keys of each query, the newer first among equals."""
        if visible is not None:
            scores = scores.masked_fill(~visible, float("-inf"))
        indices = newest_topk(scores, self.topk)
        return Selection(part, indices, scores.gather(-1, indices) > float("-inf"))


class Indexer(Chooser):
    """The indexer of single tokens (V3.2); keeps keys of its own in the layer state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        attention = config.attention
        self.rotated = config.index_rope_dim
        self.wq_b = Linear(attention.q_lora_rank or config.hidden_size, self.heads * self.width)
        self.wk = Linear(config.hidden_size, self.width)
        self.k_norm = nn.LayerNorm(self.width, eps=1e-6)
        self.weights_proj = Linear(config.hidden_size, self.heads)

    def fields(self) -> Fields:
        return {"index_key": ((self.width,), None)}

    def forward(
        self, x: Tensor, query_input: Tensor, context: Context, state: LayerState | None, everything: bool
    ) -> Iterator[Selection]:
        """x [N, d]; query_input [N, q_lora_rank or d]: the query latent where there is one, else x.

        When `state` is given, the attention has appended this chunk's index keys to it. `everything`: choose nothing, as in dense
        mode; scores are then worked out only for a trace that wants to compare them with the attention.
        """
        batch = context.batch
        everything = everything or context.history.tokens.shape[1] <= self.topk
        if everything and not context.wants_mass:
            yield Selection(slice(0, batch.longest))
            return
        keys = state.read("index_key") if state is not None else batch.pad(self.keys(x, context))
        yield from self.selections(self.queries(x, query_input, context), keys, context.visible, context, everything)

    def keys(self, x: Tensor, context: Context) -> Tensor:
        """Rotated keys [N, width], one head for all."""
        return self._rotate(self.k_norm(self.wk(x.detach())), context)

    def _rotate(self, x: Tensor, context: Context) -> Tensor:
        """The first channels turn, half-split, unlike latent attention's own (V3.2 inference code)."""
        cos, sin = context.rotary["index"]
        turned, kept = x.split([self.rotated, x.shape[-1] - self.rotated], dim=-1)
        return torch.cat([rotate(turned, cos, sin, interleaved=False), kept], dim=-1)
