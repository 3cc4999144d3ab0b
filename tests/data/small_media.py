"""A corpus of a few pictures, clips, spoken words and sounds, and a codec of a few weights, for tests of data and training."""

import io
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from fourfold.data.omni import Item, OmniCorpus, write_omni
from fourfold.media.codec import Codec, CodecConfig
from fourfold.text.tokenizer import Tokenizer

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (30, 40, 210), "black": (10, 10, 10)}
WORDS = "What is this? Is there a red square? Draw a blue dot. It moves left and right. yes no the first second Write what you hear"
CODES = 9


def make_tokenizer() -> Tokenizer:
    return Tokenizer.train([WORDS, *(f"a {colour} square, a {colour} dot" for colour in COLOURS)], 330)


def make_codec(folder: Path) -> Path:
    sizes = CodecConfig(levels=(3, 3), downsample=8, widths=(4, 6), encoder_blocks=1, decoder_blocks=1)
    return Codec(sizes).init_weights(1).save(folder)


def make_corpus(folder: Path, tokenizer: Tokenizer) -> OmniCorpus:
    """Held-out items are those of the last colour; squares have a clear border, patches are 12 x 12 pixels."""
    folder.mkdir(parents=True)
    splits: dict[str, list[Item]] = {"train": [], "held_out": []}
    for index, (name, colour) in enumerate(COLOURS.items()):
        splits["held_out" if name == "black" else "train"] += items(index, name, colour)
    write_omni(folder, folder.name, splits, tokenizer)
    return OmniCorpus.open(folder)


def items(index: int, name: str, colour: tuple[int, int, int]) -> list[Item]:
    square = Image.new("RGBA", (16, 16))
    square.paste(colour, (4, 4, 12, 12))
    patch = Image.new("RGB", (12, 12), colour)
    frames = [Image.new("RGB", (16, 16), "white") for _ in range(3)]
    for place, frame in enumerate(frames):
        frame.paste(colour, (4 * place, 4, 4 * place + 6, 10))
    moving = {"object": f"{name} dot", "motion": "right"}
    return [
        Item(f"s/{name}", "squares", "image", _picture(square), f"{name} square", name, {}),
        Item(f"p/{name}", "patches", "image", _picture(patch), name, name, {"class": index}),
        Item(f"m/{name}", "moving", "clip", _clip(frames), f"a {name} dot moves right", name, moving),
        Item(f"v/{name}", "voices", "speech", _sound(0.4, 200 + 50 * index), f"{name.title()} square.", name, {}),
        Item(f"b/{name}", "beeps", "sound", _sound(0.2, 400 * (index + 1)), f"{name} bell", name, {"family": name}),
    ]


def _picture(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _clip(frames: list[Image.Image]) -> bytes:
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=125, lossless=True)
    return file.getvalue()


def _sound(seconds: float, pitch: float) -> bytes:
    file, times = io.BytesIO(), np.arange(round(16000 * seconds)) / 16000
    soundfile.write(file, 0.3 * np.sin(2 * np.pi * pitch * times), 16000, format="WAV")
    return file.getvalue()
