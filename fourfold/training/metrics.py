"""What a run watches besides its loss: load of the experts, gain of the residual streams, health of the indexers, bits per byte."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from fourfold.data.rows import RowBatch
from fourfold.model.inputs import Batch
from fourfold.model.trace import LayerTrace
from fourfold.model.transformer import Transformer
from fourfold.ops.cross_entropy import IGNORED
from fourfold.training.losses import targets_ahead
from fourfold.training.media import count_kinds, kind_losses, model_batch

GAIN_TOKENS = 256  # tokens of a step over which the composite gain is averaged


def load_metrics(loads: list[Tensor]) -> dict[str, float]:
    """Highest and lowest load of an expert over its layer's mean (1 = even), each the worst of all layers; loads: [E] each."""
    if not loads:
        return {}
    relative = [load / load.mean() for load in loads]
    return {
        "expert_load_max": max(r.max().item() for r in relative),
        "expert_load_min": min(r.min().item() for r in relative),
    }


@torch.no_grad()
def gain_metrics(layers: Iterable[LayerTrace]) -> dict[str, float]:
    """Composite gain of the residual mixing from the first site to the last (2512.24880, on propagation).

    The product of all C[source, target] is taken per token; `residual_gain` is its largest absolute sum into a target stream
    (signal going forward), `residual_gain_backward` out of a source (gradient going back), `residual_gain_min` the smallest
    of either (attenuation); each a mean over tokens. Doubly stochastic mixing keeps all three near 1.
    """
    composite = None
    for mixing in (m for layer in layers for m in layer.stream_mixing or ()):
        site = mixing[:GAIN_TOKENS].float()
        composite = site if composite is None else composite @ site
    if composite is None:
        return {}
    into, out_of = composite.abs().sum(1), composite.abs().sum(2)
    return {
        "residual_gain": into.amax(-1).mean().item(),
        "residual_gain_backward": out_of.amax(-1).mean().item(),
        "residual_gain_min": torch.minimum(into.amin(-1), out_of.amin(-1)).mean().item(),
    }


@torch.no_grad()
def media_losses(model: Transformer, batches: Iterable[RowBatch], selection: str) -> dict[str, float]:
    """Held-out loss (nats per place) of each kind that rows with media teach, by name."""
    nats: dict[str, float] = {}
    places: dict[str, int] = {}
    training = model.training
    model.eval()
    try:
        for rows in batches:
            counts = count_kinds(rows, 1)
            hidden = model.trunk(model_batch(model, rows), selection=selection)
            sums = kind_losses(model, hidden, rows, 1, dict.fromkeys(counts, 1))
            for kind, count in counts.items():
                name = kind.name.lower()
                nats[name] = nats.get(name, 0.0) + sums[kind].item()
                places[name] = places.get(name, 0) + count
    finally:
        model.train(training)
    return {name: nats[name] / places[name] for name in nats}


@torch.no_grad()
def bits_per_byte(model: Transformer, batches: Iterable[tuple[Tensor, Tensor]], token_bytes: Tensor, selection: str) -> dict:
    """Held-out loss (nats per token) and bits per byte of the text that the rows predict.

    batches: (tokens, documents), [B, T+1] each; token_bytes [vocab]: UTF-8 bytes that a token stands for. Tokens that stand for
    no text (specials) count in neither sum, so that the figure does not depend on the tokenizer or the chat format.
    """
    nats, size, count = 0.0, 0, 0
    training = model.training
    model.eval()
    try:
        for tokens, documents in batches:
            targets = targets_ahead(tokens, documents, 1).flatten()
            hidden = model.trunk(Batch.from_tokens(tokens[:, :-1], documents[:, :-1]), selection=selection)
            lengths = token_bytes[targets.clamp(min=0)]
            kept = (targets != IGNORED) & (lengths > 0)
            for rows in kept.nonzero()[:, 0].split(1024):
                logits = model.logits(hidden[rows])
                nats += torch.nn.functional.cross_entropy(logits, targets[rows], reduction="sum").item()
            size, count = size + int(lengths[kept].sum()), count + int(kept.sum())
    finally:
        model.train(training)
    return {"loss": nats / max(count, 1), "bits_per_byte": nats / math.log(2) / max(size, 1), "bytes": size}
