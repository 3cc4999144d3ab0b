"""How evenly the routers use their experts on held-out text: the load of the busiest expert over the mean of its layer.

Counted as in training, over batches of packed rows, because that is what decides how long the slowest device of an expert-parallel
step works; and over all of them together.
"""

import torch
from torch import Tensor

from fourfold.data.corpus import Corpus
from fourfold.data.packing import PackedTokens
from fourfold.data.progress import progress
from fourfold.errors import ConfigError
from fourfold.model.inputs import Batch
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from fourfold.training.losses import expert_counts

BATCHES, ROWS, LENGTH = 16, 8, 512  # batches of that many rows of so many tokens


def experts(model: Transformer, corpus: Corpus, batches: int | None = None, split: str = "held_out") -> dict:
    """For each layer with experts the largest load over the mean (1 is even): in all, in the mean batch and in the worst one.

    Raises ConfigError for a model without experts.
    """
    if not model.routers():
        raise ConfigError("the model has no routed experts; leave out the task experts")
    length = min(LENGTH, model.config.max_position_embeddings)
    rows = PackedTokens(corpus, model.tokenizer, length, split)
    count = min(batches or BATCHES, max(rows.rows // ROWS, 1))
    counted = torch.stack([loads(model, *rows.batch(i, ROWS)) for i in progress(range(count), "experts", count)])
    in_all, by_batch = largest(counted.sum(0)), largest(counted)
    first = model.config.experts.first_k_dense_replace
    layers = [
        {"layer": first + i, "all": in_all[i].item(), "mean": own.mean().item(), "worst": own.max().item()}
        for i, own in enumerate(by_batch.unbind(1))
    ]
    unused = (counted.sum(0) == 0).sum().item()
    return {
        "corpus": corpus.name, "split": split, "batches": count, "rows": ROWS, "length": length, "layers": layers,
        "unused_experts": unused, "total": {name: max(layer[name] for layer in layers) for name in ("all", "mean", "worst")},
    }  # fmt: skip


@torch.inference_mode()
def loads(model: Transformer, tokens: Tensor, documents: Tensor) -> Tensor:
    """tokens, documents [B, T+1] -> [layers with experts, E]: how often each expert was chosen."""
    device, trace = model.embed.weight.device, Trace()
    model.trunk(Batch.from_tokens(tokens[:, :-1].to(device), documents[:, :-1].to(device)), trace=trace)
    routed = [layer.expert_ids for layer in trace.layers if layer.expert_ids is not None]
    return torch.stack([expert_counts(ids.flatten(), model.config.experts.n_routed_experts).cpu() for ids in routed])


def largest(counted: Tensor) -> Tensor:
    """[..., E] -> [...]: the busiest expert's load over the mean."""
    return counted.amax(-1) / counted.mean(-1)
