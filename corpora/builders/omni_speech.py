"""Speech: texts read by flite and espeak-ng. What is held out is heard in a held-out voice and says what no trained voice says;
single words and phrases are said by all voices and held out by voice alone."""

from collections.abc import Iterator
from pathlib import Path

from builders.common import pick
from builders.omni_audio import opus
from builders.omni_emoji import Emoji
from builders.omni_texts import Text, captions, motions, questions, sentences, words
from builders.omni_voices import ESPEAK, FLITE, Read, Voice, espeak, flite
from fourfold.data.documents import unit
from fourfold.data.omni import Item

BITS = 12_000
SENTENCES, MOTIONS, QUESTIONS = 1100, 320, 240
SLOWNESS = (0.9, 1.0, 1.15)
HELD_OUT = [voice for voice in (*FLITE, *ESPEAK) if voice.held_out]
# kal and kal16 are one speaker; each is heard half as often as the other two voices of flite.
FLITE_TRAIN = [voice for voice in FLITE if not voice.held_out for _ in range(1 if voice.speaker == "kal" else 2)]
ESPEAK_TRAIN = [voice for voice in ESPEAK if not voice.held_out]
Reading = tuple[Text, Voice, float]


def by_flite(folders: dict[str, Path], emoji: dict[str, Emoji]) -> Iterator[tuple[str, Item]]:
    return _read(readings(emoji), "flite", flite(folders["flite"], folders["alsa"]))


def by_espeak(folders: dict[str, Path], emoji: dict[str, Emoji]) -> Iterator[tuple[str, Item]]:
    return _read(readings(emoji), "espeak", espeak(folders["espeak"]))


def readings(emoji: dict[str, Emoji]) -> list[Reading]:
    """Who reads what, always in the same order, since espeak-ng's bytes depend on what it read before."""
    known = list(emoji.values())
    texts = captions(known) + sentences(known, SENTENCES) + motions(known, MOTIONS) + questions(known, QUESTIONS)
    once = {text.words: text for text in reversed(texts)}.values()
    return [*_of_words(words(known)), *_of_sentences(sorted(once, key=lambda text: text.words))]


def _read(readings: list[Reading], engine: str, read: Read) -> Iterator[tuple[str, Item]]:
    """Items with their splits."""
    for text, voice, slowness in readings:
        if voice.engine == engine:
            yield "held_out" if voice.held_out else "train", item(text, voice, slowness, read)


def item(text: Text, voice: Voice, slowness: float, read: Read) -> Item:
    media, seconds = opus(*read(text.words, voice, slowness), BITS)
    details = {"task": text.task, "voice": voice.name, "speaker": voice.speaker, "engine": voice.engine, "slowness": slowness}
    details |= {"seconds": round(seconds, 3)} | ({"about": text.about} if text.about else {})
    name = f"speech/{text.task}/{text.words.replace(' ', '-')}/{voice.name}/{slowness}"
    return Item(name, "speech", "speech", media, text.words, text.concept, details)


def _of_words(texts: list[Text]) -> Iterator[Reading]:
    """Words in every voice and at every speed in flite's, where fewer speakers are; phrases at one speed."""
    for text in texts:
        for voice in (*FLITE, *ESPEAK):
            many = text.task == "word" and (voice.engine == "flite" or voice.held_out)
            for slowness in SLOWNESS if many else [pick(list(SLOWNESS), f"slow:{text.words}/{voice.name}")]:
                yield text, voice, slowness


def _of_sentences(texts: list[Text]) -> Iterator[Reading]:
    """What is trained in one voice of flite and one of espeak-ng, what is held out in flite's held-out voice and another."""
    for text in texts:
        if text.split == "held_out":
            voices = [HELD_OUT[0], pick(HELD_OUT[1:], "voice:" + text.words)]
        else:
            voices = [pick(FLITE_TRAIN, "voice:" + text.words), pick(ESPEAK_TRAIN, "voice:" + text.words)]
        for voice in voices:
            yield text, voice, 0.9 + 0.05 * int(6 * unit(f"slow:{text.words}/{voice.name}"))
