"""The weights that a run starts with: those of another model, and the format that they are held in."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from fourfold.config import PARTS
from fourfold.errors import ConfigError
from fourfold.formats import open_checkpoint
from fourfold.model.transformer import Transformer

# fields of a config that may be another than in what a run starts from
MAY_DIFFER = {"bias_update_speed", "aux_loss_alpha", "max_position_embeddings"}
MAY_DIFFER |= {"image_longest", "clip_longest", "clip_rate", "clip_frames", "image_grid", "film_grid"}
PLACES = ("image_place_waves", "code_place_waves")
PIXELS = "media.pixels.proj.weight"


def start_from(model: Transformer, checkpoint_name: str, blend: Mapping[str, float] = MappingProxyType({})) -> None:
    """Take over the weights of a checkpoint; media parts and places (PLACES) that it lacks stay as they are.

    Where it reads clips frame by frame and this model several frames at once, see `told_apart`. `blend` names checkpoints that are
    averaged into it, and the share of each. A model that was trained on from another stays joined to it by a
    line of good weights, on which what it forgot comes back before what it learnt goes (WiSE-FT, 2109.01903, section 3).

    Raises ConfigError when more of its config is another than these and MAY_DIFFER.
    """
    other = open_checkpoint(checkpoint_name, dtype="float32")
    mine, theirs = model.config.to_flat(), other.config.to_flat()
    new = {field for part in ("media_in", "media_out") if getattr(other.config, part) is None for field in PARTS[part].model_fields}
    new |= {field for field in PLACES if not theirs.get(field)}
    together = mine.get("clip_patch_frames") if theirs.get("clip_patch_frames") == 1 else None
    new |= {"clip_patch_frames"} if together else set()
    if differing := [n for n in mine | theirs if n not in MAY_DIFFER | new and mine.get(n) != theirs.get(n)]:
        raise ConfigError(f"init: {checkpoint_name} has another {differing[0]}; name a checkpoint of this recipe's model")
    weights = other.state_dict()
    if together:
        weights[PIXELS] = told_apart(weights[PIXELS], together)
    for name, share in blend.items():
        weights = averaged(weights, name, share)
    model.load_state_dict(model.state_dict() | weights)


def told_apart(weight: Tensor, frames: int) -> Tensor:
    """[o, i] -> [o, frames · i]: what is equal in all frames is read as before, what differs by new weights, as large in sum.

    Without these a clip would begin as the mean of its frames, from which motion is hardly ever learnt (docs/results.md).
    """
    shape, generator = (len(weight), frames, weight.shape[1]), torch.Generator().manual_seed(0)
    new = torch.randn(shape, generator=generator) * weight.std() / frames**0.5
    return (weight[:, None] / frames + new - new.mean(1, keepdim=True)).flatten(1)


def averaged(weights: dict[str, Tensor], checkpoint_name: str, share: float) -> dict[str, Tensor]:
    """(1 - share) of the weights and `share` of a checkpoint's; those that it lacks, or has in another shape, stay as they are.

    Raises ConfigError when its table of words has another shape.
    """
    others = open_checkpoint(checkpoint_name, dtype="float32").state_dict()
    alike = [n for n, w in weights.items() if w.is_floating_point() and n in others and w.shape == others[n].shape]
    if "embed.weight" not in alike:
        raise ConfigError(f"blend: {checkpoint_name} has another hidden_size or vocabulary; name a checkpoint of these sizes")
    return weights | {name: weights[name].lerp(others[name], share) for name in alike}


def to_half(model: Transformer) -> None:
    """Hold the weights in bf16, but for those that the model keeps in fp32."""
    for name, parameter in model.named_parameters():
        if not model.keep_fp32(name):
            parameter.data = parameter.data.bfloat16()
