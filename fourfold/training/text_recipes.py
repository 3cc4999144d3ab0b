"""Recipes of models that read and write text."""

import dataclasses
from typing import Any

from fourfold.training.optim import OptimizerSettings
from fourfold.training.recipe import Mode, Recipe, Stage


def debug() -> Recipe:
    """Every mechanism and all three stages, within a minute on two cores."""
    stages = (
        Stage("dense", "dense", tokens=40_960),
        Stage("indexer", "indexer", tokens=6_144, lr=3e-3),
        Stage("sparse", "sparse", tokens=12_288, lr=1e-3),
    )
    small: dict[str, Any] = dict(document_stride=20, sequence_length=128, batch_size=4, eval_rows=8, checkpoint_every=20, threads=1)
    return Recipe("debug", "debug", stages, optimizer=OptimizerSettings(lr=4e-3), **small)


def micro() -> Recipe:
    """About 1M active parameters: one arm of an ablation."""
    stages = (
        Stage("dense", "dense", tokens=2_000_000),
        Stage("indexer", "indexer", tokens=200_000, lr=2e-3),
        Stage("sparse", "sparse", tokens=500_000, lr=5e-4),
    )
    return Recipe("micro", "micro", stages, eval_every=200, checkpoint_every=200, optimizer=OptimizerSettings(lr=3e-3))


def nano() -> Recipe:
    """The small checkpoint that ships with the project: text, then chats, then rows of 4,096 tokens, dense and then sparse."""
    indexer = _long("indexer", "indexer", tokens=150_000, lr=2e-3, decay=0.2, final=0.05)
    stages = (*_dense_stages(), indexer, _long("sparse", "sparse", tokens=400_000, lr=8e-4, decay=0.5, final=0.05))
    settings = OptimizerSettings(lr=4e-3)
    return Recipe("nano", "nano", stages, dtype="bfloat16", eval_every=200, checkpoint_every=200, optimizer=settings)


def nano_long() -> Recipe:
    """Goes on from the weights of `nano`: many questions about what a text says, then rows of 8,192 tokens, then sparse attention.

    A sparse step on 8,192 tokens takes 23 GB, for its KL and gradients go over whole rows; on 4,096 tokens it takes 6.
    """
    ask = {"needles": 0.45, "tiny-chat": 0.3, "tiny-text": 0.25}
    stages = (
        Stage("ask", "dense", tokens=1_300_000, lr=2e-3, warmup=0.05, final=0.5, mix=ask),
        _long("long", "dense", tokens=500_000, lr=1.2e-3, decay=0.3, final=0.5, length=8192),
        _long("indexer", "indexer", tokens=80_000, lr=2e-3, decay=0.2, final=0.05, length=8192),
        _long("sparse", "sparse", tokens=400_000, lr=8e-4, decay=0.5, final=0.05),
    )
    return dataclasses.replace(nano(), name="nano-long", init="nano", seed=1, stages=stages)


def nano_anneal() -> Recipe:
    """The last stretch of the model that ships: from the weights of `nano-long`, half plain text, at rates that fall to nothing.

    In the end the routers' biases alone move: long rows of one document each have set them askew for mixed text.
    """
    ask = {"tiny-text": 0.47, "needles": 0.3, "tiny-chat": 0.23}
    stages = (
        Stage("ask", "dense", tokens=2_000_000, lr=2e-3, warmup=0.05, decay=0.7, final=0.2, mix=ask),
        _long("long", "dense", tokens=300_000, lr=6e-4, decay=0.5, final=0.5, length=8192),
        _long("indexer", "indexer", tokens=80_000, lr=2e-3, decay=0.2, final=0.05, length=8192),
        _long("sparse", "sparse", tokens=500_000, lr=4e-4, decay=0.7, final=0.02),
        Stage("balance", "dense", tokens=250_000, lr=0.0, mix={"tiny-text": 0.85, "tiny-chat": 0.15}),
    )
    return dataclasses.replace(nano(), name="nano-anneal", init="nano-long", seed=2, stages=stages)


def nano_dense() -> Recipe:
    """What nano is measured against: a plain transformer of the same active parameters, on the same tokens."""
    stages = (*_dense_stages(), _long("last", "dense", tokens=400_000, lr=8e-4, decay=0.5, final=0.05))
    return dataclasses.replace(nano(), name="nano-dense", preset="nano-dense", stages=stages, model={})


def _dense_stages() -> tuple[Stage, ...]:
    text = {"tiny-text": 0.8, "tiny-chat": 0.12, "needles": 0.08}
    chat = {"tiny-chat": 0.6, "tiny-text": 0.3, "needles": 0.1}
    return (
        Stage("text", "dense", tokens=5_000_000, warmup=0.03, decay=0.1, final=0.5, mix=text),
        Stage("chat", "dense", tokens=1_300_000, lr=2e-3, warmup=0.0, decay=0.3, final=0.5, mix=chat),
        _long("long", "dense", tokens=900_000, lr=1.5e-3, decay=0.3, final=0.5),
    )


def _long(name: str, mode: Mode, tokens: int, lr: float, decay: float, final: float, length: int = 4096) -> Stage:
    """A stage on single long rows, half of them made for it."""
    mix = {"needles": 0.5, "tiny-text": 0.4, "tiny-chat": 0.1}
    return Stage(name, mode, tokens, lr, mix, sequence_length=length, batch_size=1, decay=decay, final=final)
