"""What is read aloud: single words, captions of emoji, what sprites do, small sentences, and questions about pictures."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product

from builders.common import article
from builders.omni_common import is_held_out
from builders.omni_emoji import Emoji
from builders.omni_sprites import DIRECTIONS, said
from fourfold.data.documents import unit

COLOURS = ("red", "green", "blue", "yellow", "orange", "purple", "pink", "black", "white", "brown")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
ANIMALS = ("dog", "cat", "horse", "cow", "pig", "bird", "frog", "bear", "lion", "tiger", "rabbit", "duck", "snake", "goat", "fox")
ANIMALS += ("camel", "monkey", "elephant", "turtle", "whale", "spider", "chicken", "bee", "owl")
THINGS = ("table", "house", "tree", "car", "chair", "box", "window", "door", "bed", "boat", "train", "bus", "hat", "book", "key")
OTHERS = ("left", "right", "up", "down", "yes", "no", "circle", "square", "heart", "star", "dress", "shirt", "coat", "bag")
PHRASES = ("what is this", "what do you see", "what do you hear", "what colour is it", "where does it go", "what does it do")
PLACES = ("under", "behind", "on", "beside")
CAPTION = re.compile(r"[a-z' -]+")


@dataclass(frozen=True)
class Text:
    """Something to read. A word or phrase is known to all voices and held out by voice only (`split` None)."""

    words: str
    task: str
    concept: str
    split: str | None
    about: str | None = None


def words(emoji: Iterable[Emoji]) -> list[Text]:
    """The closed vocabulary, without the names of what is held out."""
    free = _free(emoji)
    spoken = (*COLOURS, *NUMBERS, *[a for a in ANIMALS if free(a)][:14], *[t for t in THINGS if free(t)][:8], *filter(free, OTHERS))
    texts = [Text(word, "word", f"word:{word}", None) for word in spoken]
    return texts + [Text(phrase, "phrase", f"word:{phrase}", None) for phrase in PHRASES]


def captions(emoji: Iterable[Emoji]) -> list[Text]:
    """The names of emoji that are plain words, those of flags left out; one for each name."""
    found = {}
    for one in emoji:
        name = one.label.lower()
        if one.group != "flags" and CAPTION.fullmatch(name):
            found.setdefault(name, _about(name, "caption", one))
    return list(found.values())


def motions(emoji: Iterable[Emoji], count: int) -> list[Text]:
    """What `count` things do, one motion each."""
    nouns = sorted((one for one in emoji if one.noun), key=lambda one: unit("motion:" + one.code))
    names = list(DIRECTIONS)
    return [_about(f"the {one.label} {said(names[i % len(names)])}", "sentence", one) for i, one in enumerate(nouns[:count])]


def questions(emoji: Iterable[Emoji], count: int) -> list[Text]:
    nouns = sorted((one for one in emoji if one.noun), key=lambda one: unit("question:" + one.code))
    return [_about(f"is this {article(one.label)} {one.label}", "question", one) for one in nouns[:count]]


def sentences(emoji: Iterable[Emoji], count: int) -> list[Text]:
    """Small sentences over a small vocabulary; each is in one split by its own words."""
    free = _free(emoji)
    all_of_them = sorted(set(_sentences(list(filter(free, ANIMALS)), list(filter(free, THINGS)))), key=lambda s: unit("say:" + s))
    chosen = [(sentence, f"sentence:{sentence}") for sentence in all_of_them[:count]]
    return [Text(s, "sentence", concept, "held_out" if is_held_out(concept) else "train") for s, concept in chosen]


def _sentences(animals: list[str], things: list[str]) -> Iterator[str]:
    for animal, place, thing in product(animals, PLACES, things):
        yield f"the {animal} is {place} the {thing}"
    for number, colour, animal in product(NUMBERS[2:], COLOURS, animals):
        yield f"i see {number} {colour} {animal.removesuffix('fox') + 'foxes' if animal == 'fox' else animal + 's'}"
    for colour, thing, other, second in product(COLOURS, things, COLOURS, things):
        if unit(f"pair:{colour} {thing} {other} {second}") < 0.02 and thing != second:
            yield f"the {thing} is {colour} and the {second} is {other}"
    for a, b in product(range(1, 10), range(1, 10)):
        if a + b <= 10:
            yield f"{NUMBERS[a]} and {NUMBERS[b]} is {NUMBERS[a + b]}"
    for animal, other, place in product(animals, animals, PLACES[1:]):
        if animal != other and unit(f"two:{animal} {other} {place}") < 0.3:
            yield f"is the {animal} {place} the {other}"


def _about(words: str, task: str, emoji: Emoji) -> Text:
    return Text(words, task, emoji.concept, "held_out" if is_held_out(emoji.concept) else "train", emoji.code)


def _free(emoji: Iterable[Emoji]):
    """Whether a word is not the name of anything that is held out."""
    held_out = {one.label.lower().removesuffix(" face") for one in emoji if is_held_out(one.concept)}
    return lambda word: word not in held_out
