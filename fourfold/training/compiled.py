"""torch.compile where it pays: the mixing of residual streams and the norms, which are many small operations on fixed shapes.

Whole layers are not compiled: the experts' group sizes differ at every step, and each new one would be compiled again.
"""

from functools import partial

import torch

from fourfold.model.streams import HyperConnections
from fourfold.model.transformer import Transformer
from fourfold.ops.norm import RMSNorm

METHODS = {HyperConnections: ("weighed", "write"), RMSNorm: ("forward",)}


def compile_parts(model: Transformer) -> None:
    """Replace the methods on each module by one compiled function of its class (parameters are its inputs)."""
    for kind, names in METHODS.items():
        for name in names:
            function = torch.compile(getattr(kind, name))
            for module in model.modules():
                if isinstance(module, kind):
                    setattr(module, name, partial(function, module))


def undo_compilation(model: Transformer) -> None:
    for module in model.modules():
        for name in METHODS.get(type(module), ()):
            module.__dict__.pop(name, None)
