"""One decoder layer: memory, attention and feed-forward, each around the residual streams."""

from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.model.attention import build_attention
from fourfold.model.engram import Engram
from fourfold.model.experts import build_feed_forward
from fourfold.model.fused import can_step, is_plain, step
from fourfold.model.inputs import Context
from fourfold.model.state import LayerStates, Layout
from fourfold.model.streams import build_site
from fourfold.model.trace import LayerTrace
from fourfold.ops.norm import RMSNorm


class Layer(nn.Module):
    """X ← X + Engram(X); then X ← site(X, F) for F = attention and F = feed-forward, each behind an RMSNorm."""

    def __init__(self, config: ModelConfig, index: int, engram: Engram | None = None) -> None:
        super().__init__()
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.engram = engram
        self.attention_site = build_site(hidden, config.streams, eps, 2 * index)
        self.attention_norm = RMSNorm(hidden, eps)
        self.attention = build_attention(config, index)
        self.ffn_site = build_site(hidden, config.streams, eps, 2 * index + 1)
        self.ffn_norm = RMSNorm(hidden, eps)
        self.ffn = build_feed_forward(config, index)
        self.plain = is_plain(self)

    def fields(self) -> dict[str, Layout]:
        """The rows that each part remembers of a token."""
        own = {"attention": self.attention.fields()}
        return own if self.engram is None else own | {"engram": self.engram.fields()}

    def forward(self, streams: Tensor, classes: Tensor | None, context: Context, states: LayerStates | None = None) -> Tensor:
        """streams [N, n, d]; classes [S, K]: compressed tokens of the history, for Engram."""
        states = states or {}
        if self.plain and can_step(streams, context, states):
            stepped = step(self, streams, context, states["attention"])
            if stepped is not None:
                return stepped
        if context.trace is not None:
            context.trace.layers.append(LayerTrace())
        if self.engram is not None:
            streams = streams + self.engram(streams, classes, context, states.get("engram"))
        x, mix = self.attention_site.read(streams, context)
        read = self.attention(self.attention_norm(x), context, states.get("attention"))
        streams = self.attention_site.write(streams, read, mix)
        x, mix = self.ffn_site.read(streams, context)
        return self.ffn_site.write(streams, self.ffn(self.ffn_norm(x), context), mix)
