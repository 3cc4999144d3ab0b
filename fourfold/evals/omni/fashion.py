"""Fashion-MNIST (1708.07747): its official test pictures named by free greedy text, and pictures of its classes drawn.

Questions and requests are worded as in training (data/omni_wordings.py), each wording equally often; the pictures are not in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fourfold.data import omni_wordings as words
from fourfold.data.omni import Item
from fourfold.data.progress import progress
from fourfold.data.shelf import pictured
from fourfold.evals.omni.asking import other_names, worded
from fourfold.evals.omni.classifier import SIDE, Judge, Linear, classified, features, grey
from fourfold.evals.omni.drawing import BASELINE, by_frequency, through
from fourfold.evals.omni.figures import accuracy, figure
from fourfold.evals.omni.labels import labelled
from fourfold.evals.omni.spread import nearest, relative_spread, share_closer
from fourfold.evals.omni.subject import Subject
from fourfold.evals.statistics import subset
from fourfold.media.codec import Codec

SOURCE = "fashion"
LONGEST = 12  # tokens of an answer
RECONSTRUCTED = 200  # test pictures of a class that go through the codec
COUNTED = 200  # training pictures of a class whose codes the baseline counts


@dataclass(frozen=True)
class Wardrobe:
    """Pictures of one split: items, uint8 [N, 3, 32, 32], and the place [N] of each class in `names` (class -> its caption)."""

    items: list[Item]
    pixels: Tensor
    classes: Tensor
    names: dict[str, str]

    @classmethod
    def of(cls, items: Sequence[Item]) -> "Wardrobe":
        names = {item.concept: item.text for item in items}
        order = {concept: place for place, concept in enumerate(sorted(names))}
        pixels = [pictured(item.media, SIDE, 8) for item in progress(items, "reading Fashion-MNIST", len(items))]
        classes = torch.tensor([order[item.concept] for item in items])
        return cls(list(items), torch.stack(pixels), classes, {concept: names[concept] for concept in order})

    def some(self, each: int) -> list[Tensor]:
        """The places of the first `each` pictures of every class."""
        return [(self.classes == k).nonzero()[:each, 0] for k in range(len(self.names))]

    def cut(self, count: int | None) -> "Wardrobe":
        """`count` of the pictures, the same on every machine; None for all."""
        kept = {item.id for item in subset(self.items, count, lambda item: item.id)}
        places = [place for place, item in enumerate(self.items) if item.id in kept]
        return Wardrobe([self.items[place] for place in places], self.pixels[places], self.classes[places], self.names)


def read(subject: Subject, test: Wardrobe, linear: Linear) -> dict:
    """The share of pictures whose class is the only one that the answer names; an answer that names none is wrong."""
    labels = {concept: other_names(name) for concept, name in test.names.items()}
    prompts = [(item, worded(words.READ["image"], item.id)) for item in test.items]
    said = [labelled(reply, labels) for reply in subject.answer(prompts, LONGEST, "naming Fashion-MNIST")]
    right = [name == item.concept for name, item in zip(said, test.items, strict=True)]
    baseline = (classified(linear, grey(test.pixels)) == test.classes).double().mean().item()
    usual = max(test.classes.bincount()).item() / len(right)
    more = {"majority": usual, "unnamed": sum(name is None for name in said) / len(said)}
    return accuracy(right, 1 / len(labels), baseline, "a linear model of the pixels", **more)


def draw(subject: Subject, codec: Codec, train: Wardrobe, test: Wardrobe, judge: Judge, each: int) -> dict[str, dict]:
    """`each` pictures of every class, judged by a classifier that has only seen real ones.

    Accuracy: the class asked for is recognised. Diversity: mean distance within a class of the classifier's features, over that of
    real test pictures. Closer than test: how often a drawing lies nearer to its nearest training picture than a test picture,
    itself gone through the codec, lies to its own (0.5 is none the wiser, 1 is copying).
    """
    classes = torch.arange(len(test.names)).repeat_interleave(each)
    captions = [list(test.names.values())[k] for k in classes]
    wishes = [(worded(words.DRAW["image"], f"draw {i}").format(t=caption),) for i, caption in enumerate(captions)]
    side, shown = SIDE // codec.config.downsample, torch.cat(test.some(RECONSTRUCTED))
    drawn = grey(subject.draw(wishes, (side, side), "drawing Fashion-MNIST")[:, 0])
    again, truth = grey(through(codec, test.pixels[shown, None])[:, 0]), test.classes[shown]
    counted = torch.cat([by_frequency(codec, train.pixels[own, None], each)[:, 0] for own in train.some(COUNTED)])
    sides = {
        "drawn": (drawn, classes),
        "counted": (grey(counted), classes),
        "codec": (again, truth),
        "real": (grey(test.pixels), test.classes),
    }
    recognised = {name: (classified(judge, pictures) == wanted) for name, (pictures, wanted) in sides.items()}
    seen = {name: _by_class(features(judge, pictures), wanted, len(test.names)) for name, (pictures, wanted) in sides.items()}
    return {
        "drawn_fashion_mnist_accuracy": accuracy(
            recognised["drawn"].tolist(), 1 / len(test.names),
            recognised["counted"].double().mean().item(), BASELINE,
            ceiling=recognised["codec"].double().mean().item(), ceiling_is="test pictures that went through the codec",
            real=recognised["real"].double().mean().item(),
        ),
        "drawn_diversity": _diversity(seen, len(drawn)),
        "drawn_closer_than_test": _closeness(drawn, again, grey(counted), grey(train.pixels)),
    }  # fmt: skip


def _by_class(rows: Tensor, classes: Tensor, count: int) -> list[Tensor]:
    return [rows[classes == k] for k in range(count)]


def _diversity(seen: dict[str, list[Tensor]], count: int) -> dict:
    value, interval = relative_spread(seen["drawn"], seen["real"])
    counted, codec = (relative_spread(seen[name], seen["real"])[0] for name in ("counted", "codec"))
    about = {"ceiling": codec, "ceiling_is": "test pictures that went through the codec", "chance_is": "one picture for each class"}
    return figure(value, count, interval, 0.0, counted, BASELINE, **about)


def _closeness(drawn: Tensor, again: Tensor, counted: Tensor, train: Tensor) -> dict:
    among = train.flatten(1)
    mine, theirs, simple = (nearest(pictures.flatten(1), among)[0] for pictures in (drawn, again, counted))
    value, interval = share_closer(mine, theirs)
    near = theirs.quantile(0.05)
    more = {"nearer_than_95_percent_of_test": (mine < near).double().mean().item()}
    return figure(value, len(mine), interval, 0.5, share_closer(simple, theirs)[0], BASELINE, **more)
