"""DeepSeekMoE (2401.06066; V2 2405.04434 section 2.2; V3 2412.19437 section 2.1.2; V4 2606.19348 section 2.1): routers, shared
and routed experts."""

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.config import ExpertsConfig, ModelConfig
from fourfold.modality import Modality
from fourfold.model.inputs import Context
from fourfold.ops.experts import grouped_experts, swiglu
from fourfold.ops.linear import Linear
from fourfold.ops.topk import first_topk
from fourfold.weights.stores import ResidentStore

LOWEST_LOGIT = -80.0  # √softplus is 4e-18 there; further down softplus leaves fp32's range and the root's slope is no number


class FeedForward(nn.Module):
    """SwiGLU, gate and up in one matrix [2f, d], gate first; cut at `limit` where there is one."""

    def __init__(self, hidden: int, width: int, limit: float | None = None) -> None:
        super().__init__()
        self.limit = limit
        self.gate_up_proj = Linear(hidden, 2 * width)
        self.down_proj = Linear(width, hidden)

    def forward(self, x: Tensor, context: Context | None = None) -> Tensor:
        return swiglu(x, self.gate_up_proj.weight, self.down_proj.weight, self.limit)


class Router(nn.Module):
    """Which experts a token takes and how much of each, in fp32.

    `noaux_tc` (V3): the bias decides who is chosen, never the weight, and is moved by the trainer after each step to even the load.
    `hashed` (V4's first layers), the vocabulary's size: a fixed table `tid2eid` names each token's experts, and only weights are
    learned. `media`: what is no text has a bias of its own for each modality (V4.1's bias_vl, one for each).
    """

    bias: Tensor
    media_bias: Tensor

    def __init__(self, hidden: int, config: ExpertsConfig, hashed: int | None = None, media: bool = False) -> None:
        super().__init__()
        self.config, self.hashed = config, hashed is not None
        self.weight = nn.Parameter(torch.empty(config.n_routed_experts, hidden))
        self.balanced = config.topk_method == "noaux_tc" and not self.hashed
        if self.balanced:
            self.register_buffer("bias", torch.zeros(config.n_routed_experts))
        self.media = media and self.balanced
        if self.media:
            self.register_buffer("media_bias", torch.zeros(len(Modality) - 1, config.n_routed_experts))
        if hashed is not None:
            self.register_buffer("tid2eid", torch.zeros(hashed, config.num_experts_per_tok, dtype=torch.long))

    def reset(self, generator: np.random.Generator) -> None:
        """Give every token experts of its own, all different, where the token decides."""
        if self.hashed:
            places = generator.random((self.tid2eid.shape[0], self.config.n_routed_experts)).argsort(-1)
            self.tid2eid.copy_(torch.from_numpy(places[:, : self.config.num_experts_per_tok]))

    def forward(self, x: Tensor, tokens: Tensor | None = None, modality: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, d] -> expert ids [N, k], weights [N, k], scores [N, E] normalised to sum one (for the balance loss).

        tokens [N]: needed where the token decides; modality [N]: None where all is text.
        """
        config = self.config
        scores = self.scores(x)
        ids = self.tid2eid[tokens] if self.hashed else self.choose(scores.detach(), modality)
        weights = scores.gather(-1, ids)
        if config.norm_topk_prob:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-20)
        return ids, weights * config.routed_scaling_factor, scores / (scores.sum(-1, keepdim=True) + 1e-20)

    def scores(self, x: Tensor) -> Tensor:
        """How well each expert suits each token: fp32 [N, E], never negative."""
        logits = nn.functional.linear(x.float(), self.weight.float())
        if self.config.scoring_func == "softmax":
            return logits.softmax(-1)
        if self.config.scoring_func == "sigmoid":
            return logits.sigmoid()
        return nn.functional.softplus(logits.clamp(min=LOWEST_LOGIT)).sqrt()

    def choose(self, scores: Tensor, modality: Tensor | None = None) -> Tensor:
        """Ids [N, k] of the best experts, best first."""
        judged = scores + self.bias_of(modality) if self.balanced else scores
        return first_topk(self.within_groups(judged), self.config.num_experts_per_tok)

    def bias_of(self, modality: Tensor | None) -> Tensor:
        """[E], or [N, E] where each token goes by its own modality."""
        if modality is None or not self.media:
            return self.bias
        return torch.cat([self.bias[None], self.media_bias])[modality.long()]

    @torch.no_grad()
    def balance(self, load: Tensor, speed: float) -> None:
        """Move every modality's bias towards an even load of its own: load [6, E], how often each expert was chosen in a step.

        Experts below the mean rise by `speed`, the others fall (V3, section 2.1.2); a modality that did not occur stays.
        """
        moves = speed * torch.sign(load.mean(-1, keepdim=True) - load)
        self.bias += moves[Modality.TEXT]
        if self.media:
            self.media_bias += moves[1:]

    def within_groups(self, judged: Tensor) -> Tensor:
        """Rules out all but the best groups: judged by the two best experts (V3) or by the best one (V2)."""
        config = self.config
        if config.n_group == 1 or config.topk_method == "greedy":
            return judged
        groups = judged.unflatten(-1, (config.n_group, -1))
        worth = groups.topk(2, dim=-1).values.sum(-1) if self.balanced else groups.amax(-1)
        kept = torch.zeros_like(worth, dtype=torch.bool).scatter_(-1, first_topk(worth, config.topk_group), True)
        return groups.masked_fill(~kept[..., None], float("-inf")).flatten(-2)


class Experts(nn.Module):
    """y = FFN_shared(x) + Σ_chosen w_e FFN_e(x); shared experts are one wide feed-forward, routed ones two stacks."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        sizes, hidden = config.experts, config.hidden_size
        width, self.limit = sizes.moe_intermediate_size, sizes.swiglu_limit
        self.router = Router(hidden, sizes, config.vocab_size if config.is_hashed(layer) else None, config.has_media)
        self.gate_up = ResidentStore(sizes.n_routed_experts, 2 * width, hidden)
        self.down = ResidentStore(sizes.n_routed_experts, hidden, width)
        self.shared = FeedForward(hidden, sizes.n_shared_experts * width, self.limit) if sizes.n_shared_experts else None

    def forward(self, x: Tensor, context: Context) -> Tensor:
        """x [N, d] -> [N, d]."""
        ids, weights, scores = self.router(x, context.batch.tokens, context.batch.modality)
        if context.trace is not None:
            context.layer_trace.expert_ids, context.layer_trace.expert_scores = ids, scores
        y = grouped_experts(x, ids, weights, self.gate_up, self.down, self.limit)
        return y if self.shared is None else y + self.shared(x)


def build_feed_forward(config: ModelConfig, layer: int) -> FeedForward | Experts:
    return Experts(config, layer) if config.has_experts(layer) else FeedForward(config.hidden_size, config.intermediate_size)
