"""Multi-token prediction (V3, 2412.19437, section 2.2): one more layer per further token, sharing embedding and head."""

import torch
from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.model.inputs import Context
from fourfold.model.layer import Layer
from fourfold.model.streams import Collapse
from fourfold.ops.linear import Linear
from fourfold.ops.norm import RMSNorm


class NextTokenLayer(nn.Module):
    """h'_i = W_eh [RMSNorm(Emb(t_{i+j})) ; RMSNorm(h_i)] -> one decoder layer -> RMSNorm (equations 21-23); embedding first."""

    def __init__(self, config: ModelConfig, depth: int) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.enorm, self.hnorm = RMSNorm(hidden, eps), RMSNorm(hidden, eps)
        self.eh_proj = Linear(2 * hidden, hidden)
        self.layer = Layer(config, config.num_hidden_layers + depth)
        self.collapse = Collapse(hidden, config.streams, eps)
        self.norm = RMSNorm(hidden, eps)
        self.streams = config.streams.hc_mult if config.streams else 1

    def forward(self, hidden: Tensor, embedded: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """hidden [N, d] of the depth before, embedded [N, d] of the token to be assumed known.

        Returns the hidden state for the next depth and its normed form for the head.
        """
        x = self.eh_proj(torch.cat([self.enorm(embedded), self.hnorm(hidden)], dim=-1))
        streams = self.layer(x[:, None].expand(-1, self.streams, -1), None, context)
        collapsed = self.collapse(streams)
        return collapsed, self.norm(collapsed)
