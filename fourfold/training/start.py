"""The weights that a run starts with: those of another model, and the format that they are held in."""

from collections.abc import Mapping
from types import MappingProxyType

import torch
from torch import Tensor

from fourfold.config import PARTS, ModelConfig
from fourfold.errors import ConfigError
from fourfold.formats import open_checkpoint
from fourfold.model.transformer import Transformer

# fields of a config that may be another than in what a run starts from
MAY_DIFFER = {"bias_update_speed", "aux_loss_alpha", "max_position_embeddings"}
MAY_DIFFER |= {"image_longest", "clip_longest", "clip_rate", "clip_frames", "image_grid", "film_grid"}
PLACES = ("image_place_waves", "code_place_waves")
FRAMES, PIXELS = "clip_patch_frames", "media.pixels.proj.weight"


def start_from(model: Transformer, checkpoint_name: str, blend: Mapping[str, float] = MappingProxyType({})) -> None:
    """Take over the weights of a checkpoint; media parts and places (PLACES) that it lacks stay as they are.

    Where it reads clips frame by frame and this model several frames at once, see `told_apart`. `blend` names checkpoints that are
    then averaged in, one after the other, each with its share (`averaged`): between a model and one that was trained on from it
    the weights in between work too, so text that was forgotten comes back (WiSE-FT, 2109.01903, section 3).

    Raises ConfigError when more of a checkpoint's config is another than these and MAY_DIFFER.
    """
    weights, theirs = _opened(model, checkpoint_name, "init")
    frames = model.config.media_in.clip_patch_frames if model.config.media_in else 1
    if PIXELS in weights and theirs.media_in.clip_patch_frames < frames:
        weights[PIXELS] = told_apart(weights[PIXELS], frames)
    for name, share in blend.items():
        weights = averaged(weights, _opened(model, name, "blend")[0], share)
    model.load_state_dict(model.state_dict() | weights)


def told_apart(weight: Tensor, frames: int) -> Tensor:
    """The matrix [o, i] of one frame for `frames` at once, [o, frames · i]: what is the same in all of them is read as before.

    What differs between them is read by new random weights, together as large as the old ones. Without these a clip would begin as
    the mean of its frames, from which motion is hardly ever learnt (docs/results.md).
    """
    shape, generator = (len(weight), frames, weight.shape[1]), torch.Generator().manual_seed(0)
    new = torch.randn(shape, generator=generator) * weight.std() / frames**0.5
    return (weight[:, None] / frames + new - new.mean(1, keepdim=True)).flatten(1)


def averaged(weights: dict[str, Tensor], others: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """(1 - share) of the weights and `share` of others; what these lack, or have for another number of frames, stays as it is."""
    alike = [n for n, w in weights.items() if w.is_floating_point() and n in others and w.shape == others[n].shape]
    return weights | {name: weights[name].lerp(others[name], share) for name in alike}


def _opened(model: Transformer, checkpoint_name: str, field: str) -> tuple[dict[str, Tensor], ModelConfig]:
    """The weights of a checkpoint that fits a model, and its config; `field` of the recipe names it."""
    other = open_checkpoint(checkpoint_name, dtype="float32")
    mine, theirs = model.config.to_flat(), other.config.to_flat()
    new = {name for part in ("media_in", "media_out") if getattr(other.config, part) is None for name in PARTS[part].model_fields}
    new |= {name for name in PLACES if not theirs.get(name)}
    if theirs.get(FRAMES, 1) == 1:  # but never the other way round
        new |= {FRAMES}
    if differing := [n for n in mine | theirs if n not in MAY_DIFFER | new and mine.get(n) != theirs.get(n)]:
        raise ConfigError(f"{field}: {checkpoint_name} has another {differing[0]}; name a checkpoint of this recipe's model")
    return other.state_dict(), other.config


def to_half(model: Transformer) -> None:
    """Hold the weights in bf16, but for those that the model keeps in fp32."""
    for name, parameter in model.named_parameters():
        if not model.keep_fp32(name):
            parameter.data = parameter.data.bfloat16()
