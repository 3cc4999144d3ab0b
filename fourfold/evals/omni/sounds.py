"""Sounds by family: recordings that were held out, named by free greedy text."""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from fourfold.data import omni_wordings as words
from fourfold.data.omni import Item
from fourfold.evals.omni.asking import other_names, worded
from fourfold.evals.omni.figures import accuracy, missing
from fourfold.evals.omni.labels import labelled
from fourfold.evals.omni.spread import nearest
from fourfold.evals.omni.subject import Subject
from fourfold.media.audio import log_mel, read_sound

LONGEST = 12  # tokens of an answer


def families(subject: Subject, items: Sequence[Item], train: Sequence[Item]) -> dict:
    """The share whose family is the only one that the answer names, among the families of training."""
    if not items:
        return missing("the corpus holds out no sounds")
    labels = names_of([*train, *items])
    replies = subject.answer([(item, worded(words.READ["sound"], item.id)) for item in items], LONGEST, "sounds")
    right = [labelled(reply, labels) == family(item) for reply, item in zip(replies, items, strict=True)]
    _, places = nearest(_averages(items), _averages(train))
    alike = [family(train[place]) == family(item) for place, item in zip(places.tolist(), items, strict=True)]
    usual = Counter(map(family, train)).most_common(1)[0][0]
    more = {"majority": sum(family(item) == usual for item in items) / len(items), "families": len(labels)}
    return accuracy(right, 1 / len(labels), sum(alike) / len(alike), "the recording with the nearest mean spectrum", **more)


def family(item: Item) -> str:
    return item.details["family"]


def names_of(items: Sequence[Item]) -> dict[str, list[str]]:
    """family -> how an answer may call it: its name, and the label of its items where that is of this family alone."""
    owners: dict[str, set[str]] = {}
    for item in items:
        owners.setdefault(item.text, set()).add(family(item))
    labels: dict[str, list[str]] = {own: other_names(own) for own in sorted(set(map(family, items)))}
    for text, own in owners.items():
        if len(own) == 1 and text not in labels:
            labels[next(iter(own))] += other_names(text)
    return labels


def _averages(items: Sequence[Item]) -> Tensor:
    """Mean and spread over time of log-mel, [N, 160]."""
    mels = [log_mel(read_sound(item.media)) for item in items]
    return torch.stack([torch.cat([mel.mean(0), mel.std(0, correction=0)]) for mel in mels])
