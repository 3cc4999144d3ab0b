"""Emoji of held-out concepts: which caption a picture has, which picture a caption means, and the same thing in another style.

The model is asked what a picture shows, and its own likelihood of each of `CANDIDATES` captions is what chooses: of captions by
log p(caption | picture) - log p(caption), the latter over pictures of other things; of pictures by log p(caption | picture). Two
pictures are alike when they make the same captions likely. Concepts were never trained on, in either style; the question was.
"""

import math
from collections import Counter
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.data import omni_wordings as words
from fourfold.data.omni import Item
from fourfold.data.omni_documents import plain
from fourfold.data.shelf import pictured
from fourfold.evals.omni import similarity
from fourfold.evals.omni.asking import hashed, worded
from fourfold.evals.omni.figures import missing, ratio
from fourfold.evals.omni.spread import nearest
from fourfold.evals.omni.subject import Subject
from fourfold.evals.statistics import share

STYLES = ("fluent", "noto")
CANDIDATES = 20
OTHERS = 4  # training pictures of each style that say how likely a caption is by itself
SIDE, THUMBNAIL = 64, 16  # pixels; of the baseline's pictures
LONGEST = 16  # tokens of a caption

Pair = tuple[Item, Item]  # one emoji in both styles


def pairs_of(items: Sequence[Item]) -> list[Pair]:
    """Emoji that there are in both styles, one of each concept and one of each caption, in an order that says nothing."""
    first, second = ({item.details["code"]: item for item in items if item.source == style} for style in STYLES)
    concepts: dict[str, Pair] = {}
    for item in hashed([first[code] for code in first if code in second], "emoji"):
        concepts.setdefault(item.concept, (item, second[item.details["code"]]))
    return list({plain(pair[0].text): pair for pair in concepts.values()}.values())


def retrieval(subject: Subject, held_out: Sequence[Item], train: Sequence[Item], limit: int | None = None) -> dict:
    """The share right over both ways and both styles, groups of `CANDIDATES` concepts at a time; parts say each alone."""
    pairs = pairs_of(held_out)
    pairs = pairs[: len(pairs) if limit is None else max(limit, CANDIDATES)]
    groups = [pairs[i : i + CANDIDATES] for i in range(0, len(pairs) - CANDIDATES + 1, CANDIDATES)]
    if not groups:
        return missing(f"the corpus holds out {len(pairs)} emoji in both styles, fewer than {CANDIDATES}")
    others = [item for style in STYLES for item in hashed([i for i in train if i.source == style], "prior")[:OTHERS]]
    found = torch.cat([_judge(_scores(subject, group, others)) for group in groups], 1)  # [parts, concepts]
    simple = torch.cat([_judge(_overlaps(group, train)) for group in groups], 1)[:4].mean().item()
    alike = torch.cat([_alike(*_thumbnails(group)) for group in groups], 1).mean().item()
    names = [f"{way}_{style}" for way in ("picture_to_caption", "caption_to_picture") for style in STYLES]
    parts = {name: share(round(row.sum().item()), len(row)) for name, row in zip(names, found, strict=False)}
    parts["across_styles"] = share(round(found[4:].sum().item()), found[4:].numel()) | {
        "baseline": alike,
        "baseline_is": "nearest pixels",
    }
    more = {"parts": parts, "concepts": found.shape[1], "candidates": CANDIDATES}
    baseline_is = "words shared with the caption and tags of the training picture with the nearest pixels"
    return ratio([(right, 4.0) for right in found[:4].sum(0).tolist()], 1 / CANDIDATES, simple, baseline_is, **more)


def captions(subject: Subject, held_out: Sequence[Item], limit: int | None = None) -> dict[str, dict]:
    """Free captions: F1 of their words with those of the true ones (SQuAD, 1606.05250), and how alike both are in meaning.

    Chance: the true captions of other pictures; baseline: always the word that most captions have.
    """
    items = [item for pair in pairs_of(held_out)[:limit] for item in pair]
    if len(items) < 4:
        none = missing(f"the corpus holds out {len(items)} emoji in both styles, too few")
        return {"emoji_caption_f1": none, "emoji_caption_similarity": none}
    prompts = [(item, worded(words.READ["image"], item.id)) for item in items]
    said, true = subject.answer(prompts, LONGEST, "captions of emoji"), [item.text for item in items]
    usual = Counter(word for text in true for word in set(plain(text).split())).most_common(1)[0][0]
    ways = {"said": said, "chance": true[2:] + true[:2], "usual": [usual] * len(true)}
    exact = share(sum(plain(reply) == plain(text) for reply, text in zip(said, true, strict=True)), len(true))
    f1 = {name: [word_overlap(*pair) for pair in zip(own, true, strict=True)] for name, own in ways.items()}
    found = {"emoji_caption_f1": _mean(f1, usual, exact=exact)}
    if why := similarity.lacking():
        return found | {"emoji_caption_similarity": missing(why)}
    *vectors, meant = similarity.embedded([*said, *ways["chance"], *ways["usual"], *true]).split(len(true))
    alike = {name: (own * meant).sum(1).tolist() for name, own in zip(ways, vectors, strict=True)}
    return found | {"emoji_caption_similarity": _mean(alike, usual)}


def _mean(ways: dict[str, list[float]], usual: str, **more: object) -> dict:
    chance, simple = (sum(ways[name]) / len(ways[name]) for name in ("chance", "usual"))
    more["chance_is"] = "the captions of other pictures"
    return ratio([(value, 1.0) for value in ways["said"]], chance, simple, f"always {usual!r}", **more)


def word_overlap(said: str, wanted: str) -> float:
    """F1 of the words of two captions."""
    mine, theirs = Counter(plain(said).split()), Counter(plain(wanted).split())
    shared = (mine & theirs).total()
    return 2 * shared / (mine.total() + theirs.total()) if shared else 0.0


def _scores(subject: Subject, group: Sequence[Pair], others: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """log p(caption | picture) [styles, pictures, captions], and log p(caption) [captions]."""
    captions = [pair[0].text for pair in group]
    pictures = [pair[style] for style in range(len(STYLES)) for pair in group] + list(others)
    prompts = [(picture, words.READ["image"][0]) for picture in pictures]
    nats = -torch.tensor(subject.surprise(prompts, [captions] * len(prompts), "emoji against captions"), dtype=torch.float64)
    own, prior = nats[: -len(others)], nats[-len(others) :]
    return own.unflatten(0, (len(STYLES), -1)), prior.logsumexp(0) - math.log(len(others))


def _judge(scores: tuple[Tensor, Tensor]) -> Tensor:
    """[6, concepts]: each way in each style, then from each style to the other; an equal best counts in part."""
    likely, prior = scores
    surplus = likely - prior
    ways = [_at_one(surplus[s]) for s in range(len(STYLES))] + [_at_one(likely[s].T) for s in range(len(STYLES))]
    return torch.cat([torch.stack(ways), _alike(*surplus)])


def _alike(first: Tensor, second: Tensor) -> Tensor:
    """[2, n]: whether row i of one is most like row i of the other, by the cosine of what sets them off from the mean row."""
    a, b = (F.normalize(rows - rows.mean(0), dim=1) for rows in (first, second))
    cosine = (a @ b.T).nan_to_num()
    return torch.stack([_at_one(cosine), _at_one(cosine.T)])


def _at_one(scores: Tensor) -> Tensor:
    """[n, n] -> [n]: 1 where the best of row i is i, a part of it where others are as good."""
    best = scores == scores.max(1, keepdim=True).values
    return best.diagonal().double() / best.sum(1)


def _overlaps(group: Sequence[Pair], train: Sequence[Item]) -> tuple[Tensor, Tensor]:
    """As `_scores`, by counting words: those of the training picture of the same style that looks most alike."""
    counts = []
    for style, name in enumerate(STYLES):
        known = [item for item in train if item.source == name]
        _, places = nearest(_small([pair[style] for pair in group]), _cached_small(known))
        said = [_words(known[place]) for place in places.tolist()]
        counts.append([[float(len(own & set(plain(pair[0].text).split()))) for pair in group] for own in said])
    return torch.tensor(counts, dtype=torch.float64), torch.zeros(len(group), dtype=torch.float64)


def _words(item: Item) -> set[str]:
    return set(plain(" ".join([item.text, *item.details.get("tags", ())])).split())


_known: dict[tuple[str, ...], Tensor] = {}


def _cached_small(items: Sequence[Item]) -> Tensor:
    """`_small`, made once for the same items."""
    key = tuple(item.id for item in items)
    if key not in _known:
        _known.clear()
        _known[key] = _small(items)
    return _known[key]


def _small(items: Sequence[Item]) -> Tensor:
    """Small pictures in a row of numbers each, [N, 3 · 16 · 16] in 0..1."""
    pixels = torch.stack([pictured(item.media, SIDE, SIDE) for item in items]).float() / 255
    return F.adaptive_avg_pool2d(pixels, THUMBNAIL).flatten(1)


def _thumbnails(group: Sequence[Pair]) -> tuple[Tensor, Tensor]:
    first, second = (_small([pair[style] for pair in group]) for style in range(len(STYLES)))
    return first, second
