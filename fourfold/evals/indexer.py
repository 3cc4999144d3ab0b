"""How well the lightning indexers choose: the share of attention mass that their top-k holds, on real held-out text.

In dense mode the attention reads everything and the indexers only score, so that what each choice would have kept is known. Rows
are long enough that k is at most an eighth of them. Only queries that see more than k keys are judged: elsewhere nothing is chosen.
Where blocks of tokens are chosen, a key is a block, and mass is that of the blocks.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from fourfold.data.corpus import Corpus
from fourfold.data.documents import encode_documents, unit
from fourfold.data.progress import progress
from fourfold.errors import ConfigError, DataError
from fourfold.evals.ablation import fresh_indexers, with_indexers
from fourfold.evals.perplexity import model_scorer
from fourfold.evals.statistics import bootstrap
from fourfold.model.inputs import Batch
from fourfold.model.trace import LayerTrace, Trace
from fourfold.model.transformer import Transformer
from fourfold.ops.topk import newest_topk

LENGTH, SPARSITY = 2048, 8  # tokens of a row at least, and how many times more keys there are than are chosen
ROWS = 16
WAYS = ("indexer", "oracle", "last_k", "untrained")


def indexer(model: Transformer, corpus: Corpus, rows: int | None = None) -> dict:
    """Mass captured by each of `WAYS`, per layer and over all, share of zero scores, and the loss that sparse attention adds.

    Raises ConfigError for a model without indexers or without room for such rows, DataError for a corpus without such documents.
    """
    config = model.config
    layers = [i for i in range(config.num_hidden_layers) if config.has_indexer(i)]
    if not layers:
        raise ConfigError("the model has no lightning indexer; leave out the task indexer")
    topk = config.selection.index_topk
    tokens = topk * (config.compression.csa_ratio if config.compression else 1)  # that k keys stand for
    length = max(LENGTH, SPARSITY * tokens)
    if length > (most := config.max_position_embeddings):
        raise ConfigError(f"rows of {length} tokens exceed the {most} positions of the model; leave out the task indexer")
    chosen = long_rows(model, corpus, length, rows or ROWS)
    sums, fresh = torch.zeros(len(layers), len(WAYS) + 1, dtype=torch.float64), fresh_indexers(model)
    gaps = []
    for _, row in progress(chosen, "indexer", len(chosen)):
        sums += capture(model, row, fresh, topk)
        gaps.append(loss_gap(model, row, tokens))
    about = {"corpus": corpus.name, "split": "held_out", "length": length, "topk": topk, "rows": len(chosen)}
    about["documents"] = sorted({id for id, _ in chosen})
    named = [{"layer": i, **_named(row / len(chosen))} for i, row in zip(layers, sums, strict=True)]
    return about | {"layers": named, "total": _named(sums.mean(0) / len(chosen)), "sparse_minus_dense": _gap(gaps)}


def long_rows(model: Transformer, corpus: Corpus, length: int, count: int) -> list[tuple[str, Tensor]]:
    """(document, ids [length]): up to `count` stretches of held-out documents, in turn from each, without overlap."""
    documents = [d for d in corpus.documents("held_out") if d.size >= length]  # a token is at least a byte of it
    encoded = zip(documents, encode_documents(documents, model.tokenizer), strict=True)
    cut = [(d.id, [ids[i : i + length] for i in range(0, len(ids) - length + 1, length)]) for d, ids in encoded]
    if not (cut := [(id, parts) for id, parts in cut if parts]):
        raise DataError(f"{corpus.folder}: no held-out document has {length} tokens; choose a corpus with longer ones")
    cut.sort(key=lambda own: unit(own[0]))
    turns = [(id, parts[turn]) for turn in range(max(len(p) for _, p in cut)) for id, parts in cut if turn < len(parts)]
    return [(id, torch.tensor(ids)) for id, ids in turns[:count]]


@torch.inference_mode()
def capture(model: Transformer, row: Tensor, fresh: list[nn.Module], topk: int) -> Tensor:
    """row [T] -> fp64 [layers that choose, ways + 1]: mean mass each way captures, then the share of visible keys scored exactly 0.

    fresh: untrained indexers; in dense mode they change nothing but the scores.
    """
    batch = Batch.from_tokens(row[None].to(model.embed.weight.device))
    trained, untrained = Trace(attention_mass=True), Trace(attention_mass=True)
    model.trunk(batch, trace=trained, selection="dense")
    with with_indexers(model, fresh):
        model.trunk(batch, trace=untrained, selection="dense")
    pairs = [(own, other) for own, other in zip(trained.layers, untrained.layers, strict=True) if own.index_scores is not None]
    return torch.tensor([list(captured(own, other, topk)) for own, other in pairs], dtype=torch.float64)


def captured(layer: LayerTrace, fresh: LayerTrace, topk: int) -> Iterator[float]:
    """The figures of one layer over queries with more than `topk` visible keys; traces of dense passes over one row."""
    judged = layer.index_mask[0].sum(-1) > topk
    mass, visible = layer.attention_mass[0, judged], layer.index_mask[0, judged]  # [Q, K]
    scores, untrained = (own.index_scores[0, judged] for own in (layer, fresh))
    yield _held(mass, scores, visible, topk)
    yield mass.topk(topk).values.sum(-1).mean().item()
    yield _held(mass, torch.arange(mass.shape[-1], device=mass.device).float().expand_as(mass), visible, topk)
    yield _held(mass, untrained, visible, topk)
    yield ((scores == 0) & visible).sum().item() / visible.sum().item()


def _held(mass: Tensor, scores: Tensor, visible: Tensor, topk: int) -> float:
    """Mean mass of the `topk` visible keys with the highest scores, chosen as the indexer chooses."""
    chosen = newest_topk(scores.masked_fill(~visible, -torch.inf), topk)
    return mass.gather(-1, chosen).sum(-1).mean().item()


def loss_gap(model: Transformer, row: Tensor, first: int) -> tuple[float, float, int]:
    """Summed nats with sparse and with dense attention of what the queries from `first` on predict, and how many these are."""
    nats = [model_scorer(model, selection)([row])[0][first:].double() for selection in ("sparse", "dense")]
    return nats[0].sum().item(), nats[1].sum().item(), len(nats[0])


def _gap(gaps: list[tuple[float, float, int]]) -> dict:
    """Nats per token, and the interval of their difference over rows."""
    sparse, dense, tokens = (sum(column) for column in zip(*gaps, strict=True))
    interval = bootstrap([s - d for s, d, _ in gaps], [n for _, _, n in gaps])
    per_token = {"sparse": sparse / tokens, "dense": dense / tokens, "difference": (sparse - dense) / tokens}
    return per_token | {"interval": interval, "tokens": tokens}


def _named(values: Tensor) -> dict[str, float]:
    return dict(zip((*WAYS, "zero_scores"), values.tolist(), strict=True))
