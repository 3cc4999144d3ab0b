"""Multi-token prediction (V3, 2412.19437, section 2.2): one more layer per further token, sharing embedding and head."""

import torch
from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.model.inputs import Context
from fourfold.model.layer import Layer
from fourfold.model.state import LayerStates
from fourfold.model.streams import Collapse
from fourfold.ops.linear import Linear
from fourfold.ops.norm import RMSNorm


class NextTokenLayer(nn.Module):
    """h'_i = W_eh [RMSNorm(Emb(t_{i+j})) ; RMSNorm(h_i)] -> one decoder layer -> RMSNorm (equations 21-23); embedding first.

    h is the collapsed state, copied to all streams afterwards; with `hc_mtp`, as in the released V4, it is each stream itself
    (W_eh is its e_proj and h_proj side by side).
    """

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.eh_proj = Linear(2 * hidden, hidden)
        self.layer = Layer(config, config.num_hidden_layers + depth)
        self.collapse = Collapse(hidden, config.streams, eps)
        self.norm = RMSNorm(hidden, eps)
        self.streams = config.streams.hc_mult if config.streams else 1
        self.keeps_streams = config.streams is not None and config.streams.hc_mtp

    def forward(
        self, streams: Tensor, hidden: Tensor, embedded: Tensor, context: Context, states: LayerStates | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """streams [N, n, d] and hidden [N, d], their collapse, of the depth before; embedded [N, d] of the token assumed known.

        Returns both for the next depth, and the normed collapse for the head. With `states` it goes on from what it has seen.
        """
        known = streams if self.keeps_streams else hidden[:, None]
        token = self.enorm(embedded)[:, None].expand_as(known)
        x = self.eh_proj(torch.cat([token, self.hnorm(known)], dim=-1))
        streams = self.layer(x.expand(-1, self.streams, -1), None, context, states)
        collapsed = self.collapse(streams)
        return streams, collapsed, self.norm(collapsed)
