"""Speech written down: synthetic, of voices and sentences held out, and real recordings where they have been fetched.

Questions are worded as in training, each wording equally often. Single words are of a closed vocabulary that training heard in
other voices; sentences are held out themselves. Shuffled: the question is put about the speech of another item; an answer that
comes from anything but the sound is as good there.
"""

from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.data import omni_wordings as words
from fourfold.data.omni import Item
from fourfold.data.progress import progress
from fourfold.evals.omni.asking import worded
from fourfold.evals.omni.figures import accuracy, missing, ratio
from fourfold.evals.omni.spread import nearest
from fourfold.evals.omni.subject import Subject
from fourfold.evals.omni.transcripts import audible, character_errors
from fourfold.evals.statistics import share
from fourfold.media.audio import log_mel, read_sound

LONGEST = 64  # tokens of a transcript
STRETCHES = 12  # parts of a clip whose mean spectra the baseline compares


def parted(items: Sequence[Item]) -> tuple[list[Item], list[Item]]:
    """Single words of the closed vocabulary; and captions, sentences and questions (phrases are neither)."""
    tasks = {item.id: item.details.get("task") for item in items}
    single = [item for item in items if tasks[item.id] == "word"]
    return single, [item for item in items if tasks[item.id] not in ("word", "phrase")]


def written(subject: Subject, items: Sequence[Item], label: str) -> list[str]:
    """A greedy transcript of each."""
    prompts = [(item, worded(words.READ["speech"], item.id)) for item in items]
    return subject.answer(prompts, LONGEST, label)


def word_accuracy(subject: Subject, items: Sequence[Item], train: Sequence[Item]) -> dict:
    """The share of single words written down right by free greedy text, in all and by voice."""
    if not items or not train:
        return missing("the corpus holds out no single words")
    right = [_same(said, item.text) for said, item in zip(written(subject, items, "words"), items, strict=True)]
    vocabulary = Counter(audible(item.text) for item in train)
    _, places = nearest(_spectra(items), _spectra(train))
    alike = [_same(train[place].text, item.text) for place, item in zip(places.tolist(), items, strict=True)]
    usual = vocabulary.most_common(1)[0][0]
    voices = {
        voice: [r for r, item in zip(right, items, strict=True) if _voice(item) == voice]
        for voice in sorted(set(map(_voice, items)))
    }
    more = {
        "majority": sum(_same(usual, item.text) for item in items) / len(items),
        "vocabulary": len(vocabulary),
        "voices": {voice: share(sum(own), len(own)) for voice, own in voices.items()},
    }
    return accuracy(right, 1 / len(vocabulary), sum(alike) / len(alike), "the clip of training with the nearest spectra", **more)


def transcripts(subject: Subject, items: Sequence[Item]) -> dict[str, dict]:
    """CER of held-out synthetic sentences, and with their clips shuffled."""
    if len(items) < 2:
        none = missing(f"the corpus holds out {len(items)} sentences of speech")
        return {"speech_cer_synthetic": none, "speech_cer_shuffled": none}
    said, misled = written(subject, items, "speech"), written(subject, turned(items), "speech, shuffled")
    return {"speech_cer_synthetic": error_rate(said, items), "speech_cer_shuffled": error_rate(misled, items)}


def error_rate(said: Sequence[str], items: Sequence[Item]) -> dict:
    """Edits over characters of what was said. Chance: the words of another clip; baseline: an empty transcript, which has 1."""
    pairs = [character_errors(text, item.text) for text, item in zip(said, items, strict=True)]
    other = [character_errors(other.text, item.text) for other, item in zip(turned(items), items, strict=True)]
    chance = sum(wrong for wrong, _ in other) / max(sum(n for _, n in other), 1)
    more = {"chance_is": "the words of another clip of like length", "voices": sorted(set(map(_voice, items)))}
    return ratio(pairs, chance, 1.0, "nothing written", **more)


def turned(items: Sequence[Item]) -> list[Item]:
    """For each item another, with other words: the one after it, in order of their length, so that lengths stay alike."""
    order = sorted(range(len(items)), key=lambda i: (len(items[i].text), items[i].id))
    found = list(items)
    for place, i in enumerate(order):
        ahead = (items[order[(place + step) % len(order)]] for step in range(1, len(order)))
        found[i] = next((other for other in ahead if not _same(other.text, items[i].text)), items[i])
    return found


def _same(said: str, wanted: str) -> bool:
    return audible(said) == audible(wanted)


def _voice(item: Item) -> str:
    return str(item.details.get("voice"))


def _spectra(items: Sequence[Item]) -> Tensor:
    """Mean log-mel of `STRETCHES` equal parts of each clip, without its own mean, [N, 12 · 80]."""
    mels = (log_mel(read_sound(item.media)) for item in progress(items, "spectra of words", len(items)))
    parts = torch.stack([F.adaptive_avg_pool1d(mel.T, STRETCHES).flatten() for mel in mels])
    return parts - parts.mean(1, keepdim=True)
