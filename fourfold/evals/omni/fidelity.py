"""How much of held-out pictures and clips the codec keeps, beside reducing them to the same number of bits."""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from fourfold.data.omni import Item
from fourfold.data.progress import progress
from fourfold.data.shelf import filmed, pictured
from fourfold.evals.omni.drawing import through
from fourfold.evals.omni.figures import missing, ratio
from fourfold.media.codec import Codec, psnr
from fourfold.media.spans import FILM_RATE
from fourfold.parts import MediaOutConfig

BITS = 24  # of a pixel of the reduced picture


def fidelity(codec: Codec, items: Sequence[Item], sizes: MediaOutConfig) -> dict:
    """Mean PSNR in dB of pictures and clips (of a clip over its frames) at the sizes that the model draws, and by source.

    Chance: each frame in its mean colour. Baseline: reduced by bicubic interpolation to as many 24-bit pixels as the codes have
    bits, and enlarged again.
    """
    if not items:
        return missing("the corpus holds out no pictures and clips")
    bits = math.log2(codec.codes) / codec.config.downsample**2  # of a pixel
    rows = []
    for item in progress(items, "codec", len(items)):
        true = _shown(item, sizes)[None]
        made = {"codec": through(codec, true).float() / 255}
        true = true.float() / 255
        made |= {"mean": true.mean((-2, -1), keepdim=True).expand_as(true), "bicubic": reduced(true[0], bits)[None]}
        rows.append({name: psnr(other, true).mean().item() for name, other in made.items()})
    by_source = {
        source: sum(row["codec"] for row, item in zip(rows, items, strict=True) if item.source == source)
        / sum(item.source == source for item in items)
        for source in sorted({item.source for item in items})
    }
    mean, bicubic = (sum(row[name] for row in rows) / len(rows) for name in ("mean", "bicubic"))
    more = {"chance_is": "the mean colour of each frame", "sources": by_source, "bits_per_pixel": bits}
    said = "bicubic reduction to as many bits"
    return ratio([(row["codec"], 1.0) for row in rows], mean, bicubic, said, **more)


def reduced(frames: Tensor, bits: float) -> Tensor:
    """Frames [F, 3, H, W] in 0..1 made so small that their 24-bit pixels have `bits` for each of their own, and large again."""
    height, width = frames.shape[2:]
    scale = math.sqrt(bits / BITS)
    small = max(1, int(height * scale)), max(1, int(width * scale))
    down = F.interpolate(frames, small, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    return F.interpolate(down, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def _shown(item: Item, sizes: MediaOutConfig) -> Tensor:
    """uint8 [F, 3, H, W], no larger than what the model draws."""
    step, (count, *film) = sizes.code_downsample, sizes.film_grid
    if item.kind == "clip":
        return filmed(item.media, step * max(film), step, FILM_RATE, count)[0]
    return pictured(item.media, step * max(sizes.image_grid), step)[None]
