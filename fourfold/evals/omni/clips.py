"""Clips of sprites that were held out: what moves in them, which way it moves, and which way it moves in clips that are drawn.

A motion is one of the eight ways of motion.py; captions read "the rabbit moves up and to the left". Questions and requests are
worded as in training, each wording equally often.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from fourfold.data import omni_wordings as words
from fourfold.data.omni import Item
from fourfold.data.shelf import filmed
from fourfold.evals.omni.asking import hashed, worded
from fourfold.evals.omni.drawing import BASELINE, by_frequency, through
from fourfold.evals.omni.figures import accuracy, missing
from fourfold.evals.omni.labels import labelled
from fourfold.evals.omni.subject import Subject
from fourfold.media.codec import Codec
from fourfold.media.motion import WAYS, way
from fourfold.media.spans import FILM_RATE

SIDE, FRAMES = 32, 8  # pixels and frames of a clip
CANDIDATES = 8  # objects to choose from
OTHERS = 4  # training clips that say how likely an object is by itself
COUNTED = 100  # training clips of a way whose codes the baseline counts
LONGEST = 12  # tokens of an answer


def moving(items: Sequence[Item]) -> list[Item]:
    """The clips whose motion is one of the eight ways, in an order that says nothing."""
    return hashed([item for item in items if item.details.get("motion") in WAYS], "clips")


def directions(subject: Subject, items: Sequence[Item], train: Sequence[Item]) -> dict:
    """The share of clips for which the answer names their way alone. Ceiling: the way measured from the pixels."""
    if not items:
        return missing("the corpus holds out no clips of the eight ways")
    labels = {motion: sorted(names) for motion, names in said_of([*items, *train]).items()}
    prompts = [(item, worded(words.MOTION, item.id)) for item in items]
    replies = subject.answer(prompts, LONGEST, "ways of clips")
    right = [labelled(reply, labels) == item.details["motion"] for reply, item in zip(replies, items, strict=True)]
    measured = [way(frames_of(item)) == item.details["motion"] for item in items]
    usual = Counter(item.details["motion"] for item in moving(train)).most_common(1)[0][0]
    simple = sum(item.details["motion"] == usual for item in items) / len(items)
    more = {"ceiling": sum(measured) / len(measured), "ceiling_is": "the way measured from the pixels"}
    return accuracy(right, 1 / len(WAYS), simple, f"always {usual}", **more)


def said_of(items: Sequence[Item]) -> dict[str, set[str]]:
    """motion -> how captions and answers say it: "up left", "moves up and to the left", "up and to the left"."""
    found: dict[str, set[str]] = {}
    for item in items:
        if motion := item.details.get("motion"):
            said = phrase(item)
            found.setdefault(motion, set()).update((motion, said, said.removeprefix("moves ")))
    return found


def phrase(item: Item) -> str:
    """What a caption says of the motion."""
    return item.text.partition(item.details["object"])[2].strip()


def objects(subject: Subject, items: Sequence[Item], train: Sequence[Item], count: int) -> dict:
    """Which of `CANDIDATES` held-out objects moves in each of about `count` clips.

    It is that whose caption, with the clip's own motion, gains most: log p(caption | clip) over log p(caption), which is that under
    training clips of other things.
    """
    groups = grouped(items)[: max(1, count // CANDIDATES)]
    if not groups or len(train) < OTHERS:
        return missing(f"the corpus holds out clips of fewer than {CANDIDATES} objects")
    asked, prior = words.READ["clip"][1], priors(subject, groups, hashed(train, "prior")[:OTHERS])
    right: list[bool] = []
    clips = [(item, group) for group in groups for item in group]
    endings = [[renamed(item, other.details["object"]) for other in group] for item, group in clips]
    found = subject.surprise([(item, asked) for item, _ in clips], endings, "objects of clips")
    for (item, group), nats in zip(clips, found, strict=True):
        names = [other.details["object"] for other in group]
        gains = [-own - prior[name] for own, name in zip(nats, names, strict=True)]
        right.append(names[max(range(len(gains)), key=gains.__getitem__)] == item.details["object"])
    simple, is_ = 1 / CANDIDATES, "always the first of them"
    return accuracy(right, 1 / CANDIDATES, simple, is_, candidates=CANDIDATES, objects=len(prior))


def grouped(items: Sequence[Item]) -> list[list[Item]]:
    """`CANDIDATES` clips of different objects at a time; clips that fill no group are left out."""
    waiting, groups = list(items), list[list[Item]]()
    while True:
        first: dict[str, Item] = {}
        for item in waiting:
            if len(first) < CANDIDATES:
                first.setdefault(item.details["object"], item)
        if len(first) < CANDIDATES:
            return groups
        groups.append(list(first.values()))
        taken = {item.id for item in first.values()}
        waiting = [item for item in waiting if item.id not in taken]


def priors(subject: Subject, groups: Sequence[Sequence[Item]], others: Sequence[Item]) -> dict[str, float]:
    """object -> log of its caption's mean likelihood under clips of other things, each with that clip's own motion."""
    names = sorted({item.details["object"] for group in groups for item in group})
    prompts = [(other, words.READ["clip"][1]) for other in others]
    endings = [[renamed(other, name) for name in names] for other in others]
    nats = -torch.tensor(subject.surprise(prompts, endings, "objects by themselves"), dtype=torch.float64)
    return dict(zip(names, (nats.logsumexp(0) - math.log(len(others))).tolist(), strict=True))


def renamed(item: Item, name: str) -> str:
    """The caption with another object."""
    return item.text.replace(item.details["object"], name, 1)


def drawn_directions(subject: Subject, codec: Codec, items: Sequence[Item], train: Sequence[Item]) -> dict:
    """Clips drawn from captions: the share that move the way asked for, measured from the pixels (motion.py).

    Ceilings: the same measure on real held-out clips, and on these gone through the codec.
    """
    if not items or not moving(train):
        return missing("the corpus has no clips of the eight ways")
    wanted = [item.details["motion"] for item in items]
    wishes = [(worded(words.DRAW["clip"], item.id).format(t=item.text),) for item in items]
    step = codec.config.downsample
    drawn = subject.draw(wishes, (FRAMES, SIDE // step, SIDE // step), "drawing clips")
    real = torch.stack([frames_of(item) for item in items])
    counted = _counted(codec, wanted, train)
    shares = {
        name: sum(way(clip) == asked for clip, asked in zip(clips, wanted, strict=True)) / len(wanted)
        for name, clips in {"real": real, "codec": through(codec, real), "counted": counted}.items()
    }
    right = [way(clip) == asked for clip, asked in zip(drawn, wanted, strict=True)]
    more = {"real": shares["real"], "ceiling": shares["codec"], "ceiling_is": "held-out clips that went through the codec"}
    return accuracy(right, 1 / len(WAYS), shares["counted"], BASELINE, **more)


def _counted(codec: Codec, wanted: Sequence[str], train: Sequence[Item]) -> Tensor:
    """The baseline's clips, one for each way that is wanted."""
    known = moving(train)
    clips: dict[str, list[Tensor]] = {}
    for motion in sorted(set(wanted)):
        own = [item for item in known if item.details["motion"] == motion][:COUNTED]
        count = wanted.count(motion)
        some = torch.stack([frames_of(item) for item in own or known[:1]])
        clips[motion] = list(by_frequency(codec, some, count))
    return torch.stack([clips[motion].pop() for motion in wanted])


def frames_of(item: Item) -> Tensor:
    """uint8 [8, 3, 32, 32]; a shorter clip stays at its last frame."""
    frames = filmed(item.media, SIDE, 8, FILM_RATE, FRAMES)[0]
    return torch.cat([frames, frames[-1:].expand(FRAMES - len(frames), -1, -1, -1)])
