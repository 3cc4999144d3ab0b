"""From one kind of media to another, and what a model says is there that is not.

Questions are worded as in training, each wording equally often; pictures, concepts, voices and sentences were held out.
"""

from collections import defaultdict
from collections.abc import Sequence

from fourfold.data import omni_wordings as words
from fourfold.data.documents import unit
from fourfold.data.omni import Item
from fourfold.data.omni_documents import name, plain
from fourfold.data.omni_wordings import FIRST, SECOND, with_article
from fourfold.evals.omni.asking import hashed, other_than, worded
from fourfold.evals.omni.figures import accuracy, missing
from fourfold.evals.omni.labels import affirmed, labelled
from fourfold.evals.omni.subject import Prompt, Subject
from fourfold.evals.statistics import share

LONGEST = 6  # tokens of an answer
Question = tuple[Prompt, str]  # and the answer
CHOICE = {FIRST: ["first", "first one", "1"], SECOND: ["second", "second one", "2"], "yes": [], "no": []}


def crossings(subject: Subject, pictures: Sequence[Item], speech: Sequence[Item], each: int) -> dict:
    """Questions with two answers, half of them either, `each` of a kind: asked aloud about a picture, a spoken description against
    a picture, two pictures and a sentence, two pictures and a voice. Kinds for which nothing is held out are left out.
    """
    said = spoken_pairs(pictures, speech)[:each]
    asked = [(item, own) for item in hashed(speech, "asked") if (own := _about(item, pictures))][:each]
    kinds = {
        "question_asked_aloud": [asked_aloud(*pair, pictures) for pair in asked],
        "spoken_description": [fits(*pair, pictures) for pair in said],
        "which_picture_a_sentence_means": [which(item, pictures) for item in hashed(pictures, "which")[:each]],
        "which_picture_a_voice_means": [which_said(*pair, pictures) for pair in said],
    }
    able = {kind: [question for question in own if question] for kind, own in kinds.items() if any(own)}
    if not able:
        return missing("the corpus holds out no pictures with speech about them")
    questions = [question for own in able.values() for question in own]
    replies = subject.answer([prompt for prompt, _ in questions], LONGEST, "one kind of media against another")
    right = [labelled(reply, CHOICE) == told for reply, (_, told) in zip(replies, questions, strict=True)]
    rest, parts = iter(right), {}
    for kind, own in able.items():
        parts[kind] = share(sum(next(rest) for _ in own), len(own)) | {"constant": _constant([told for _, told in own])}
    simple = sum(part["constant"] * part["total"] for part in parts.values()) / len(questions)
    return accuracy(right, 0.5, simple, "always the same answer to a kind of question", parts=parts)


def hallucination(subject: Subject, pictures: Sequence[Item], each: int) -> dict:
    """How often the model says that a thing is there which is not; `each` pictures are asked about, once more for what is there.

    Baseline: how often it says yes at all, which is what the rate would be if it did not look.
    """
    items = [item for item in hashed(pictures, "there")[:each] if other_than(item, pictures, item.id)]
    if not items:
        return missing("the corpus holds out no pictures of different things")
    absent = [there(item, other_than(item, pictures, item.id)) for item in items]
    present = [there(item, item) for item in items]
    said = [affirmed(reply) for reply in subject.answer([*absent, *present], LONGEST, "what is not there")]
    wrong, right = ([answer is True for answer in half] for half in (said[: len(items)], said[len(items) :]))
    yes = (sum(wrong) + sum(right)) / len(said)
    more = {"affirmed_present": share(sum(right), len(right)), "neither": sum(answer is None for answer in said) / len(said)}
    return accuracy(wrong, 0.5, yes, "how often it says yes to anything", **more)


def spoken_pairs(pictures: Sequence[Item], speech: Sequence[Item]) -> list[tuple[Item, Item]]:
    """Speech, and a picture whose caption it is; in an order that says nothing."""
    shown = defaultdict(list)
    for picture in pictures:
        shown[plain(picture.text)].append(picture)
    able = [item for item in hashed(speech, "spoken") if plain(item.text) in shown]
    return [(item, hashed(shown[plain(item.text)], item.id)[0]) for item in able]


def _about(speech: Item, pictures: Sequence[Item]) -> Item | None:
    """A picture of what a spoken question asks for ("is this a rabbit")."""
    if speech.details.get("task") != "question":
        return None
    shown = [picture for picture in pictures if picture.details.get("code") == speech.details.get("about")]
    return hashed(shown, speech.id)[0] if shown else None


def asked_aloud(speech: Item, picture: Item, pictures: Sequence[Item]) -> Question | None:
    """Is this ...? The question is heard, not read."""
    other, is_right = other_than(picture, _alike(picture, pictures), speech.id), _coin(f"aloud {speech.id}")
    return None if other is None else ((picture if is_right else other, speech), "yes" if is_right else "no")


def fits(speech: Item, picture: Item, pictures: Sequence[Item]) -> Question | None:
    """Do the words fit the picture?"""
    other, is_right = other_than(picture, _alike(picture, pictures), speech.id), _coin(f"fits {speech.id}")
    asked = (picture if is_right else other, speech, worded(words.MATCHES, speech.id))
    return None if other is None else (asked, "yes" if is_right else "no")


def which(picture: Item, pictures: Sequence[Item]) -> Question | None:
    """Which of two pictures shows ...?"""
    asked = worded(words.WHICH, picture.id).format(a=with_article(name(picture)))
    return _of_two(picture, pictures, f"which {picture.id}", (asked,))


def which_said(speech: Item, picture: Item, pictures: Sequence[Item]) -> Question | None:
    """Which of two pictures does a voice speak of?"""
    return _of_two(picture, pictures, f"said {speech.id}", (speech, worded(words.WHICH_SAID, speech.id)))


def there(item: Item, asked: Item | None) -> Prompt:
    """Is there ...?"""
    return item, worded(words.THERE["image"], item.id).format(a=with_article(name(asked or item)))


def _of_two(picture: Item, pictures: Sequence[Item], key: str, rest: Prompt) -> Question | None:
    other, is_first = other_than(picture, _alike(picture, pictures), key), _coin(key)
    if other is None:
        return None
    return ((picture, other, *rest), FIRST) if is_first else ((other, picture, *rest), SECOND)


def _alike(picture: Item, pictures: Sequence[Item]) -> list[Item]:
    """Pictures of the same source."""
    return [other for other in pictures if other.source == picture.source]


def _coin(key: str) -> bool:
    return unit(f"coin:{key}") < 0.5


def _constant(told: Sequence[str]) -> float:
    """The share of the more frequent answer."""
    return max(told.count(answer) for answer in set(told)) / len(told)
