"""The weights that a run starts with: those of another model, and the format that they are held in."""

from fourfold.config import PARTS
from fourfold.errors import ConfigError
from fourfold.formats import open_checkpoint
from fourfold.model.transformer import Transformer

# fields of a config that may be another than in what a run starts from
MAY_DIFFER = {"bias_update_speed", "aux_loss_alpha", "max_position_embeddings"}
MAY_DIFFER |= {"image_longest", "clip_longest", "clip_rate", "clip_frames", "image_grid", "film_grid"}
PLACES = ("image_place_waves", "code_place_waves")


def start_from(model: Transformer, checkpoint_name: str) -> None:
    """Take over the weights of a checkpoint; media parts and places (PLACES) that it lacks stay as they are.

    Raises ConfigError when more of its config is another than these and MAY_DIFFER.
    """
    other = open_checkpoint(checkpoint_name, dtype="float32")
    mine, theirs = model.config.to_flat(), other.config.to_flat()
    new = {field for part in ("media_in", "media_out") if getattr(other.config, part) is None for field in PARTS[part].model_fields}
    new |= {field for field in PLACES if not theirs.get(field)}
    if differing := [n for n in mine | theirs if n not in MAY_DIFFER | new and mine.get(n) != theirs.get(n)]:
        raise ConfigError(f"init: {checkpoint_name} has another {differing[0]}; name a checkpoint of this recipe's model")
    model.load_state_dict(model.state_dict() | other.state_dict())


def to_half(model: Transformer) -> None:
    """Hold the weights in bf16, but for those that the model keeps in fp32."""
    for name, parameter in model.named_parameters():
        if not model.keep_fp32(name):
            parameter.data = parameter.data.bfloat16()
