"""Which parameter is moved by what: Muon for matrices, AdamW for the rest, on fp32 masters of bf16 weights."""

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from fourfold.training.muon import Muon

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]


TABLES = (
    *("embed.weight", "head", "code_embed.weight", "code_head", "media.pixels.proj.weight", "media.sound.proj.weight"),
    *("media.pixels.places.waves", "code_places.waves"),
)


@dataclass(frozen=True)
class OptimizerSettings:
    """Values of the optimisers; `lr` is shared by Muon and AdamW, whose steps have the same size."""

    lr: Amount = 1e-3
    matrices: Literal["muon", "adamw"] = "muon"
    momentum: Momentum = 0.95
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Positive = 1e-8
    weight_decay: Amount = 0.1
    clip: Positive = 1.0
    memory_lr_scale: Amount = 5.0
    indexer_lr_scale: Amount = 10.0  # an indexer starts late and learns from few tokens, so at a rate of its own


def kind_of(name: str, parameter: Tensor) -> str:
    """`memory` (Engram rows), `table` (input tables and heads), `matrix` ([a, b], or experts [E, a, b]), or `vector` (all else).

    The projection of patches is an input table too: what it reads is pixels, whose common directions (the mean, slow slopes) are to
    be learnt faster than the rest, where orthogonalised steps would move all alike.
    The mixing parameters of residual streams and depthwise kernels count as vectors: no direction of theirs is to be
    orthogonalised, and a decay would pull the streams' mixing away from its start.
    """
    if ".engram.table." in name:
        return "memory"
    if name in TABLES:
        return "table"
    return "matrix" if name.endswith(".weight") and parameter.ndim >= 2 else "vector"


def parts_of(name: str, groups: int = 1) -> int:
    """How many matrices lie one below the other in a weight: gate and up projections share one, and so do the `groups` of heads
    that the output projection of compressed attention takes apart."""
    return groups if ".o_a_proj." in name else 2 if "gate_up" in name else 1


def _groups(model: nn.Module) -> int:
    """Groups of heads of compressed attention, where the model has it."""
    compression = getattr(getattr(model, "config", None), "compression", None)
    return compression.o_groups if compression else 1


class MasterWeights:
    """fp32 copies of parameters held in another format; a parameter already in fp32 is its own master."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.parameters = list(parameters)
        self.masters = [p if p.dtype == torch.float32 else nn.Parameter(p.detach().float()) for p in self.parameters]
        self._gradients: dict[int, Tensor] = {}  # kept from step to step: fresh memory costs more than the copy

    def _pairs(self) -> list[tuple[nn.Parameter, nn.Parameter]]:
        return [(p, m) for p, m in zip(self.parameters, self.masters, strict=True) if p is not m]

    def pull_gradients(self) -> None:
        """Move the gradients over to the masters, in fp32."""
        for place, (parameter, master) in enumerate(self._pairs()):
            if parameter.grad is None:
                master.grad = None
                continue
            if place not in self._gradients:
                self._gradients[place] = torch.empty_like(master)
            master.grad, parameter.grad = self._gradients[place].copy_(parameter.grad), None

    @torch.no_grad()
    def push_weights(self) -> None:
        """Round the masters into the weights."""
        for parameter, master in self._pairs():
            parameter.copy_(master)

    def state_dict(self) -> list[Tensor]:
        return [master.detach() for _, master in self._pairs()]

    @torch.no_grad()
    def load_state_dict(self, state: list[Tensor]) -> None:
        for (_, master), saved in zip(self._pairs(), state, strict=True):
            master.copy_(saved)
        self.push_weights()


class Optimizer:
    """Steps every parameter of a model that has a gradient; frozen and untouched ones keep weight and state.

    The indexers' gradients come from a loss of their own, so they are clipped by a norm of their own: training an indexer
    then never changes the step of the model beside it.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: OptimizerSettings,
        indexer_names: set[str] = frozenset(),
        muon_dtype: torch.dtype = torch.float32,
    ) -> None:
        named = list(model.named_parameters())
        self.settings, self.weights = settings, MasterWeights(parameter for _, parameter in named)
        groups_of_heads = _groups(model)
        kinds: dict[tuple[str, int, bool], list[nn.Parameter]] = defaultdict(list)
        self.clipped: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for (name, parameter), master in zip(named, self.weights.masters, strict=True):
            kinds[kind_of(name, parameter), parts_of(name, groups_of_heads), name in indexer_names].append(master)
            self.clipped[name in indexer_names].append(master)
        groups: dict[str, list[dict]] = {"adamw": [], "muon": []}
        for (kind, parts, is_indexer), masters in kinds.items():
            scale = settings.memory_lr_scale if kind == "memory" else settings.indexer_lr_scale if is_indexer else 1.0
            decay = settings.weight_decay if kind in ("matrix", "table") else 0.0
            chosen = settings.matrices if kind == "matrix" else "adamw"
            groups[chosen].append({"params": masters, "scale": scale, "weight_decay": decay, "parts": parts})
        adamw = torch.optim.AdamW(groups["adamw"], betas=settings.betas, eps=settings.eps, fused=True)
        self.optimizers: list[torch.optim.Optimizer] = [adamw]
        if groups["muon"]:
            self.optimizers.append(Muon(groups["muon"], momentum=settings.momentum, dtype=muon_dtype))

    def step(self, lr: float) -> tuple[float, float]:
        """Clip, step at `lr`, clear the gradients; returns the norms before clipping: of the model, and of the indexers.

        Gradients that are not finite move nothing.
        """
        self.weights.pull_gradients()
        norms = tuple(self._clip(masters) for masters in self.clipped)
        for optimizer in self.optimizers if math.isfinite(sum(norms)) else ():
            for group in optimizer.param_groups:
                group["lr"] = lr * group["scale"]
            optimizer.step()
        self.zero_grad()
        self.weights.push_weights()
        return norms

    def _clip(self, masters: list[nn.Parameter]) -> float:
        moved = [master for master in masters if master.grad is not None]
        return nn.utils.clip_grad_norm_(moved, self.settings.clip).item() if moved else 0.0

    def zero_grad(self) -> None:
        for parameter in (*self.weights.parameters, *self.weights.masters):
            parameter.grad = None

    def state_dict(self) -> dict:
        return {"masters": self.weights.state_dict(), "optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state: dict) -> None:
        self.weights.load_state_dict(state["masters"])
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
