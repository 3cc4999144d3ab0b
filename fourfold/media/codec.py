"""The codec of what is drawn: pictures and clips to grids of codes and back, by convolutions that never look ahead in time.

    encoder   pixels -> squares -> blocks of widths[0] -> 2 x 2 into 1 -> blocks of widths[1] ... -> some numbers -> code
    decoder   the same way back, with more blocks

A picture is a clip of one frame: both go through the same blocks (blocks.py), and a clip begins as its first frame alone would.
"""

import json
import os
from pathlib import Path
from typing import Self

import safetensors.torch
import torch
from pydantic import Field, PositiveInt, model_validator
from safetensors import SafetensorError
from torch import Tensor, nn

from fourfold import paths
from fourfold.errors import CheckpointError, ConfigError
from fourfold.files import atomic_folder
from fourfold.media.blocks import Block, Conv, Fold, Unfold
from fourfold.media.fsq import FiniteScalarQuantiser
from fourfold.parts import Part, require

MODEL_TYPE = "fourfold-codec"
CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
REACHES = (1, 2, 4)  # frames that the blocks of one width look back, by turns: together over a clip of 8


class CodecConfig(Part):
    """Sizes of a codec; the defaults make one of 1,000 codes of each square of 8 x 8 pixels.

    levels: of each number that a code is made of, their product being the number of codes. widths: channels of the blocks, from the
    finest grid to that of the codes, each grid half as fine as the one before. Block counts are for each width.
    """

    levels: tuple[int, ...] = Field((8, 5, 5, 5), min_length=1)
    downsample: PositiveInt = 8
    widths: tuple[PositiveInt, ...] = Field((96, 192), min_length=1)
    encoder_blocks: PositiveInt = 2
    decoder_blocks: PositiveInt = 3

    @property
    def square(self) -> int:
        """Side in pixels of what is one place of the finest grid."""
        return self.downsample // 2 ** (len(self.widths) - 1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        require(min(self.levels) >= 2, "levels", f"has {min(self.levels)}; give each number 2 levels or more")
        halvings = 2 ** (len(self.widths) - 1)
        require(self.downsample % halvings == 0, "downsample", f"is {self.downsample}, which {halvings} (from widths) must divide")
        return self


class Codec(nn.Module):
    """Pixels in 0..1 to codes and back. Frame f's codes follow from frames <= f, and its pixels from the codes of those."""

    def __init__(self, config: CodecConfig) -> None:
        super().__init__()
        self.config = config
        widths, numbers = config.widths, len(config.levels)
        inward: list[nn.Module] = [Fold(config.square), nn.Linear(3 * config.square**2, widths[0])]
        outward: list[nn.Module] = [nn.Linear(numbers, widths[-1])]
        for fine, coarse in zip(widths, (*widths[1:], None), strict=True):
            inward += _blocks(fine, config.encoder_blocks)
            inward += [Fold(2), nn.Linear(4 * fine, coarse)] if coarse else [nn.Linear(fine, numbers)]
        for coarse, fine in zip(widths[::-1], (*widths[-2::-1], None), strict=True):
            outward += _blocks(coarse, config.decoder_blocks)
            outward += [nn.Linear(coarse, 4 * fine), Unfold(2)] if fine else [Conv(coarse, 3 * config.square**2)]
        self.encoder, self.decoder = nn.Sequential(*inward), nn.Sequential(*outward, Unfold(config.square))
        self.quantiser = FiniteScalarQuantiser(config.levels)
        self.card: str | None = None  # the README.md that it was loaded with, and is saved with again

    @property
    def codes(self) -> int:
        """How many there are."""
        return self.quantiser.codes

    def forward(self, clips: Tensor) -> Tensor:
        """What becomes of clips [B, F, 3, H, W], with gradients and not yet clamped: training compares it with the clips."""
        return self._paint(self.quantiser.quantise(self._numbers(clips)))

    @torch.no_grad()
    def encode(self, clips: Tensor) -> Tensor:
        """Pixels fp32 [B, F, 3, H, W] in 0..1 -> codes int64 [B, F, H / 8, W / 8]. Raises ValueError for other shapes."""
        self._check(clips)
        return self.quantiser.encode(self._numbers(clips))

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Codes int64 [B, F, rows, columns] -> pixels fp32 [B, F, 3, 8 · rows, 8 · columns] in 0..1. Raises ValueError."""
        if codes.ndim != 4 or not codes.numel():
            raise ValueError(f"codes {list(codes.shape)} are not [clips, frames, rows, columns]")
        if codes.min() < 0 or codes.max() >= self.codes:
            raise ValueError(f"codes from {int(codes.min())} to {int(codes.max())} are not all in 0 .. {self.codes - 1}")
        return self._paint(self.quantiser.decode(codes)).clamp(0, 1)

    def _numbers(self, clips: Tensor) -> Tensor:
        return self.encoder(clips.permute(0, 1, 3, 4, 2) - 0.5)

    def _paint(self, vectors: Tensor) -> Tensor:
        return self.decoder(vectors).permute(0, 1, 4, 2, 3) + 0.5

    def _check(self, clips: Tensor) -> None:
        side = self.config.downsample
        if clips.ndim != 5 or clips.shape[2] != 3 or not clips.numel() or clips.shape[3] % side or clips.shape[4] % side:
            wanted = f"[clips, frames, 3, height, width] with height and width multiples of {side}"
            raise ValueError(f"clips {list(clips.shape)} are not {wanted}")

    def init_weights(self, seed: int) -> Self:
        """Random matrices that keep the size of what they multiply; every block begins as nothing. The same for the same seed."""
        drawn = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.ndim < 2 or name.endswith(".out.weight"):
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5, generator=drawn)
        return self

    def save(self, folder: str | os.PathLike, card: str | None = None) -> Path:
        """Write config.json, model.safetensors and README.md (`card`; None: its own), whole or not at all, over an older codec.

        Raises CheckpointError when the folder holds something else, FourfoldError when it cannot be written.
        """
        folder = Path(folder)
        if folder.is_dir() and any(folder.iterdir()) and not (folder / CONFIG).is_file():
            raise CheckpointError(f"{folder}: holds other files, which saving would replace; name a new or empty folder")
        card = card or self.card or f"# {folder.name}\n\nA picture and clip codec of Fourfold.\n"
        config = {"model_type": MODEL_TYPE, **self.config.model_dump(mode="json")}
        tensors = {name: tensor.contiguous() for name, tensor in self.state_dict().items()}
        with atomic_folder(folder) as place:
            (place / CONFIG).write_text(json.dumps(config, indent=2) + "\n", "utf-8")
            (place / WEIGHTS).write_bytes(safetensors.torch.save(tensors, metadata={"format": "pt"}))
            (place / CARD).write_text(card, "utf-8")
        return folder

    @classmethod
    def load(cls, name_or_folder: str | os.PathLike) -> "Codec":
        """The codec of a folder, or of a name among the models, in evaluation mode. Raises CheckpointError in one line."""
        folder = paths.find("models", name_or_folder)
        if folder is None:
            raise CheckpointError(f"{name_or_folder}: no such codec; name a folder, or make one with `fourfold train codec`")
        codec = cls(_read_config(folder / CONFIG))
        codec.load_state_dict(_read_weights(folder / WEIGHTS, codec.state_dict()))
        codec.card = (folder / CARD).read_text("utf-8", "replace") if (folder / CARD).is_file() else None
        return codec.eval()


def psnr(made: Tensor, true: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each picture [..., 3, H, W] in 0..1; at most 60, which no error at all would get."""
    return -10 * (made - true).square().mean((-3, -2, -1)).clamp(min=1e-6).log10()


def _blocks(width: int, count: int) -> list[nn.Module]:
    return [Block(width, REACHES[place % len(REACHES)]) for place in range(count)]


def _read_config(file: Path) -> CodecConfig:
    try:
        fields = json.loads(file.read_text("utf-8"))
        kind = fields.pop("model_type", None)
    except OSError as error:
        raise CheckpointError(f"{file}: cannot be read ({error.strerror}); name a folder that holds a whole codec") from None
    except (ValueError, AttributeError, TypeError, RecursionError):
        raise CheckpointError(f"{file}: does not hold one JSON object; copy the codec again") from None
    if kind != MODEL_TYPE:
        raise CheckpointError(f"{file}: model_type is {kind!r}, not {MODEL_TYPE!r}; name the folder of a codec")
    try:
        return CodecConfig(**fields)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from None


def _read_weights(file: Path, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a file, if they are just those expected. Raises CheckpointError naming the first that is not."""
    try:
        stored = safetensors.torch.load_file(file)
    except (OSError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{file}: missing, truncated or not a safetensors file ({reason}); copy the codec again") from None
    for name in sorted(expected.keys() | stored.keys()):
        found, wanted = _shape(stored.get(name)), _shape(expected.get(name))
        if found != wanted:
            said = f"is {found}, not {wanted}" if found and wanted else "is missing" if wanted else "is not part of this codec"
            raise CheckpointError(f"{file}: tensor {name} {said}; use the config.json that it was saved with")
    return stored


def _shape(tensor: Tensor | None) -> str | None:
    return None if tensor is None else f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
