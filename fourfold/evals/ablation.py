"""Taking one part of a model away for a while, to see what it does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from fourfold.model.engram import Engram
from fourfold.model.transformer import Transformer
from fourfold.weights.stores import Store


class EmptyStore(nn.Module):
    """A store of the shape of another whose rows are all zero."""

    def __init__(self, store: Store, like: Tensor) -> None:
        super().__init__()
        self.shape, self._like = store.shape, like

    def fetch(self, ids: Tensor) -> Tensor:
        return self._like.new_zeros(*ids.shape, *self.shape[1:])

    def all(self) -> Tensor:
        return self._like.new_zeros(self.shape)


@contextmanager
def without_engram(model: Transformer) -> Iterator[Transformer]:
    """The model with every row of Engram's tables read as zero, which makes Engram's whole contribution zero; then as it was.

    Values are a bias-free projection of the rows, so that nothing is added to the streams. The tables themselves, resident or
    mapped, are not touched. A cache filled outside holds gates of the real rows: start a new one inside.
    """
    memories = [module for module in model.modules() if isinstance(module, Engram)]
    tables = [memory.table for memory in memories]
    try:
        for memory in memories:
            memory.table = EmptyStore(memory.table, memory.value_proj.weight)
        yield model
    finally:
        for memory, table in zip(memories, tables, strict=True):
            memory.table = table


def fresh_indexers(model: Transformer, seed: int = 1) -> list[nn.Module]:
    """The indexers, of those layers that have one, as `init_weights(seed)` draws them, before any training."""
    classes = model.token_classes.cpu() if model.config.memory else None
    fresh = Transformer(model.config, classes).init_weights(seed).to(model.embed.weight.device, model.embed.weight.dtype)
    return [attention.indexer for attention in choosing(fresh)]


def choosing(model: Transformer) -> list[Any]:
    """The attentions that have an indexer, from the first layer on."""
    return [layer.attention for layer in model.layers if layer.attention.indexer is not None]


@contextmanager
def with_indexers(model: Transformer, indexers: list[nn.Module]) -> Iterator[Transformer]:
    """The model choosing with other indexers, one for each of `choosing`; then with its own again."""
    attentions = choosing(model)
    own = [attention.indexer for attention in attentions]
    try:
        for attention, indexer in zip(attentions, indexers, strict=True):
            attention.indexer = indexer
        yield model
    finally:
        for attention, indexer in zip(attentions, own, strict=True):
            attention.indexer = indexer
