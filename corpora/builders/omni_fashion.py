"""Fashion-MNIST: all 70,000 grey pictures of 28 x 28 pixels, with the official test split."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from builders.omni_common import picture
from fourfold.data.omni import Item

CLASSES = ("t-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
FILES = {"train": "train", "held_out": "t10k"}


def build(folder: Path, split: str) -> Iterator[Item]:
    for index, (pixels, label) in enumerate(zip(*arrays(folder, split), strict=True)):
        name, media = CLASSES[label], picture(Image.fromarray(pixels), lossless=True)
        yield Item(
            f"fashion/{split}/{index}", "fashion", "image", media, name, f"fashion:{name}", {"class": int(label), "index": index}
        )


def arrays(folder: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels uint8 [n, 28, 28] and classes uint8 [n], in the order of the data set."""
    data = folder / "usr/share/datasets/fashion-mnist"
    pixels = gzip.decompress((data / f"{FILES[split]}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((data / f"{FILES[split]}-labels-idx1-ubyte.gz").read_bytes())[8:]
    return np.frombuffer(pixels, np.uint8).reshape(-1, 28, 28), np.frombuffer(labels, np.uint8)
