"""A corpus of media for the evals' tests, and subjects that know every answer or none."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image
from torch import Tensor

from fourfold.data import omni_wordings as words
from fourfold.data.omni import Item, OmniCorpus, write_omni
from fourfold.data.omni_documents import name, plain
from fourfold.data.omni_wordings import FIRST, SECOND, with_article
from fourfold.data.shelf import filmed, pictured
from fourfold.evals.omni.subject import Prompt
from fourfold.media.codec import Codec, CodecConfig
from fourfold.media.motion import WAYS
from fourfold.parts import MediaOutConfig
from fourfold.text.tokenizer import Tokenizer

CLASSES = ("t-shirt", "shirt", "ankle boot")
THINGS = ("cat", "red fox", "lamp", "tree", "boat", "drum", "owl", "key", "moon", "kite")
STEPS = {"left": (-2, 0), "right": (2, 0), "up": (0, -2), "down": (0, 2)}


def make_omni(folder: Path, tokenizer: Tokenizer) -> OmniCorpus:
    """A few items of every source; the same things in both splits, for what is measured here is never learnt."""
    folder.mkdir(parents=True)
    splits = {}
    for number, split in enumerate(("train", "held_out")):
        draw = np.random.default_rng(number)
        splits[split] = [*clothes(split, draw), *emoji(draw), *sprites(), *speech(split, draw), *sounds(split, draw)]
    write_omni(folder, folder.name, splits, tokenizer)
    return OmniCorpus.open(folder)


def clothes(split: str, draw: np.random.Generator) -> list[Item]:
    """Classes that differ by which third of the picture is bright."""
    found = []
    for index in range(12):
        kind = index % len(CLASSES)
        pixels = draw.integers(0, 60, (28, 28), dtype=np.uint8)
        pixels[:, 9 * kind : 9 * kind + 9] += 150
        about = {"class": kind, "index": index}
        media = encoded(pixels)
        found.append(Item(f"fashion/{split}/{index}", "fashion", "image", media, CLASSES[kind], f"fashion:{CLASSES[kind]}", about))
    return found


def emoji(draw: np.random.Generator) -> list[Item]:
    found = []
    for place, thing in enumerate(THINGS):
        colour = np.array([25 * place, 255 - 25 * place, 120 * (place % 3)])
        for style in ("fluent", "noto"):
            pixels = (colour + draw.integers(-20, 20, (16, 16, 3))).clip(0, 255).astype(np.uint8)
            about = {"code": f"1f{place:03}", "tags": [], "style": style}
            found.append(Item(f"{style}/{place}", style, "image", encoded(pixels), thing, f"1f{place:03}", about))
    return found


def sprites() -> list[Item]:
    """Each thing moving each way, and one that only grows."""
    return [moved(thing, motion) for thing in THINGS[:8] for motion in (*WAYS, "grows")]


def moved(thing: str, motion: str) -> Item:
    frames, steps = [], [STEPS[word] for word in motion.split() if word in STEPS]
    for k in range(8):
        frame = np.full((32, 32, 3), 200, np.uint8)
        x, y = (12 + int((k - 3.5) * sum(step[axis] for step in steps)) // 2 for axis in (0, 1))
        side = 4 + k if motion == "grows" else 8
        frame[y : y + side, x : x + side] = (40, 10 * len(thing), 90)
        frames.append(Image.fromarray(frame))
    file = io.BytesIO()
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:], duration=125, lossless=True)
    text = f"the {thing} " + ("grows" if motion == "grows" else "moves " + motion.replace(" ", " and to the "))
    about = {"object": thing, "motion": motion, "sprite": thing}
    return Item(f"sprites/{thing}/{motion}".replace(" ", "-"), "sprites", "clip", file.getvalue(), text, thing, about)


def speech(split: str, draw: np.random.Generator) -> list[Item]:
    """Captions, questions about things and words of a closed vocabulary, whose pitch says which they are."""
    found = []
    for place, thing in enumerate(THINGS):
        for task, text in (("caption", thing), ("question", f"is this a {thing}"), ("word", thing)):
            tone = np.sin(np.arange(3000) * 0.04 * (place + 1)) if task == "word" else draw.standard_normal(2000 + 300 * len(text))
            about = {"voice": split, "task": task} | ({"about": f"1f{place:03}"} if task != "word" else {})
            found.append(Item(f"speech/{split}/{task}/{place}", "speech", "speech", heard(tone * 0.1), text, text, about))
    return found


def sounds(split: str, draw: np.random.Generator) -> list[Item]:
    found = []
    for place in range(8):
        family, pitch = (("drum", 0.02), ("bell", 0.4))[place % 2]
        wave = np.sin(np.arange(3000) * pitch * (1 + 0.05 * draw.random()))
        found.append(Item(f"sounds/{split}/{place}", "sounds", "sound", heard(wave), family, f"{place}", {"family": family}))
    return found


def encoded(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def heard(samples: np.ndarray) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.float32), 16000, format="WAV")
    return file.getvalue()


def make_codec() -> Codec:
    """Random weights: it keeps nothing of a picture, and is one all the same."""
    config = CodecConfig(levels=(5, 5), widths=(8, 8), encoder_blocks=1, decoder_blocks=1)
    return Codec(config).init_weights(1).eval()


class Mirror(Codec):
    """A codec whose codes are the numbers of the clips that it was given: it gives back just what came in."""

    def __init__(self) -> None:
        super().__init__(CodecConfig(levels=(5, 5), widths=(8, 8), encoder_blocks=1, decoder_blocks=1))
        self.seen: list[Tensor] = []

    def encode(self, clips: Tensor) -> Tensor:
        numbers = torch.arange(len(self.seen), len(self.seen) + len(clips))
        self.seen += list(clips)
        return numbers[:, None, None, None].expand(-1, clips.shape[1], clips.shape[3] // 8, clips.shape[4] // 8)

    def decode(self, codes: Tensor) -> Tensor:
        return torch.stack([self.seen[int(own.flatten()[0])] for own in codes])


class Oracle:
    """Knows what every item is, and draws what is asked for by taking it from `items`."""

    def __init__(self, items: Sequence[Item], codec: Codec | None = None) -> None:
        self.items, self.codec, self.grids = items, codec, MediaOutConfig(image_token_size=25)

    def answer(self, prompts: Sequence[Prompt], longest: int, label: str) -> list[str]:
        return [self._answer(*_parts(prompt)) for prompt in prompts]

    def _answer(self, items: list[Item], asked: str) -> str:
        names = [with_article(name(item)) for item in items]
        if len(items) == 3 or (len(items) == 2 and items[0].kind == items[1].kind == "image"):
            meant = [item.text == items[2].text for item in items] if len(items) == 3 else _means(words.WHICH, asked, names)
            return FIRST if meant[0] else SECOND
        if len(items) == 2:
            return "yes" if plain(items[0].text) == plain(items[1].text).removeprefix("is this a ") else "no"
        if asked in words.MOTION:
            return items[0].details["motion"] + "."
        if asked in words.READ[items[0].kind]:
            return items[0].text
        return "Yes" if _means(words.THERE["image"], asked, names)[0] else "No"

    def surprise(self, prompts: Sequence[Prompt], endings: Sequence[Sequence[str]], label: str) -> list[list[float]]:
        items = [_parts(prompt)[0][0] for prompt in prompts]
        return [[1.0 if ending == item.text else 9.0 for ending in own] for item, own in zip(items, endings, strict=True)]

    def draw(self, wishes: Sequence[Prompt], grid: tuple[int, ...], label: str) -> Tensor:
        kind, drawn = ("clip", words.DRAW["clip"]) if len(grid) == 3 else ("image", words.DRAW["image"])
        found: list[Tensor] = []
        for number, (wish,) in enumerate(wishes):
            fit = [item for item in self.items if item.kind == kind and wish in [w.format(t=item.text) for w in drawn]]
            media = fit[number % len(fit)].media
            found.append(filmed(media, 32, 8, 8.0, 8)[0] if kind == "clip" else pictured(media, 32, 8)[None])
        return torch.stack(found)


class Constant(Oracle):
    """Says the same to everything, finds everything equally likely, and draws grey."""

    def __init__(self, said: str, codec: Codec | None = None) -> None:
        super().__init__([], codec)
        self.said = said

    def _answer(self, items: list[Item], asked: str) -> str:
        return self.said

    def surprise(self, prompts: Sequence[Prompt], endings: Sequence[Sequence[str]], label: str) -> list[list[float]]:
        return [[3.0] * len(own) for own in endings]

    def draw(self, wishes: Sequence[Prompt], grid: tuple[int, ...], label: str) -> Tensor:
        frames, rows, columns = (1, *grid)[-3:]
        return torch.full((len(wishes), frames, 3, 8 * rows, 8 * columns), 128, dtype=torch.uint8)


def _parts(prompt: Prompt) -> tuple[list[Item], str]:
    return [p for p in prompt if isinstance(p, Item)], next((p for p in prompt if isinstance(p, str)), "")


def _means(wordings: Sequence[str], asked: str, names: Sequence[str]) -> list[bool]:
    return [asked in [wording.format(a=own) for wording in wordings] for own in names]
