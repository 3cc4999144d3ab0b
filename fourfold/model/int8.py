"""A model whose matrices are INT8 (ops/int8.py), made of one in any other format."""

from torch import nn

from fourfold.model.transformer import Transformer
from fourfold.ops.int8 import INPUTS, Int8Weight
from fourfold.ops.linear import Linear

# Read as plain matrices and not only multiplied by (latent attention's absorbed form, V4's), or small and deciding what is read.
KEPT = frozenset({"kv_b_proj", "o_a_proj", "wkv", "wgate", "indexer"})


def to_int8(model: Transformer) -> Transformer:
    """Put INT8 in the place of the matrices of every layer, and of the head; the same model, which cannot be trained any more.

    Embeddings, norms, routers, routed experts, stream mixing, media and what KEPT names stay as they are. A head that was the
    embedding becomes one of its own beside it.
    """
    for part in (model.layers, model.mtp):
        for name, module in part.named_modules():
            if isinstance(module, Linear) and KEPT.isdisjoint(name.split(".")):
                _pack(module, "weight", module.weight)
    head = model.head_weight
    model.config = model.config.but(tie_word_embeddings=False)
    _pack(model, "head", head)
    return model


def is_packed(model: nn.Module) -> bool:
    """Whether any of its weights are INT8."""
    return any(isinstance(module, Int8Weight) for module in model.modules())


def _pack(owner: nn.Module, name: str, weight: nn.Parameter) -> None:
    """Replace a parameter, or put a weight where there is none; one that has no kernel for its width stays as it is."""
    if weight.shape[1] % INPUTS == 0:
        owner._parameters.pop(name, None)
        setattr(owner, name, Int8Weight(weight))
    elif name not in owner._parameters:
        owner.register_parameter(name, weight)
