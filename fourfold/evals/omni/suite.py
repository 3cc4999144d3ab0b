"""All figures of an omni model, each on held-out data, by the names that programs read."""

import lzma
import math
import time
from dataclasses import dataclass, replace

from fourfold import paths
from fourfold.data.corpus import Corpus
from fourfold.data.omni import Item, OmniCorpus
from fourfold.evals.omni import clips, crossing, emoji, fashion, sounds, speech
from fourfold.evals.omni.asking import hashed
from fourfold.evals.omni.classifier import grey, judges
from fourfold.evals.omni.fidelity import fidelity
from fourfold.evals.omni.figures import figure, missing
from fourfold.evals.omni.subject import ModelSubject, Subject
from fourfold.evals.perplexity import perplexity
from fourfold.evals.statistics import subset
from fourfold.model.transformer import Transformer

CORPUS, TEXT, REAL = "tiny-omni", "tiny-text", "asterisk"
KEYS = (
    "fashion_mnist_accuracy", "drawn_fashion_mnist_accuracy", "drawn_diversity", "drawn_closer_than_test",
    "emoji_retrieval_at_1", "emoji_caption_f1", "emoji_caption_similarity",
    "clip_object_accuracy", "clip_direction_accuracy", "drawn_clip_direction_accuracy",
    "speech_word_accuracy", "speech_cer_synthetic", "speech_cer_real", "speech_cer_shuffled", "sound_family_accuracy",
    "cross_modal_accuracy", "hallucination_rate", "codec_psnr", "text_bits_per_byte",
)  # fmt: skip
NOTHING_DRAWN = "media_out: the model draws nothing"


@dataclass(frozen=True)
class Sizes:
    """How much is tried: test pictures of Fashion-MNIST (None: all), drawings of a class, pairs of emoji (None: all), clips read
    and drawn, speech (each way), real speech, questions of a kind, pictures of a source for the codec, documents of text.
    """

    fashion: int | None = None
    drawn: int = 100
    emoji: int | None = None
    clips: int = 240
    films: int = 240
    speech: int = 300
    real: int = 200
    questions: int = 200
    codec: int = 60
    text: int | None = None

    def at_most(self, limit: int | None) -> "Sizes":
        """No more than `limit` of anything, and of a class a tenth of it (two at least)."""
        if limit is None:
            return self
        less = {name: limit if value is None else min(value, limit) for name, value in vars(self).items()}
        return replace(self, **less | {"drawn": min(self.drawn, max(2, limit // 10))})


class Shelves:
    """The items of a corpus by split and source, read once."""

    def __init__(self, corpus: OmniCorpus) -> None:
        self.corpus = corpus
        self._items: dict[tuple[str, str], list[Item]] = {}

    def of(self, split: str, *sources: str) -> list[Item]:
        """Those of some sources; of one that the corpus does not have, none."""
        return [item for source in sources for item in self._of(split, source)]

    def _of(self, split: str, source: str) -> list[Item]:
        if (split, source) not in self._items:
            known = source in self.corpus.sources
            self._items[split, source] = self.corpus.items(split, {source}) if known else []
        return self._items[split, source]


def run(model: Transformer, limit: int | None = None) -> dict:
    """Every figure of `KEYS`, and how long each group of them took. Raises ConfigError for a model that reads no media."""
    corpus = OmniCorpus.open(CORPUS)
    return measure(ModelSubject(model, corpus), corpus, Sizes().at_most(limit)) | {
        "text_bits_per_byte": text(model, Corpus.open(TEXT), Sizes().at_most(limit).text)
    }


def measure(subject: Subject, corpus: OmniCorpus, sizes: Sizes) -> dict[str, dict]:
    """All figures that ask about media."""
    shelves, found = Shelves(corpus), dict[str, dict]()
    for part in (_fashion, _emoji, _clips, _speech, _sounds, _crossings, _codec):
        began = time.perf_counter()
        own = part(subject, shelves, sizes)
        seconds = round(time.perf_counter() - began, 1)
        found |= {name: about | {"seconds": seconds} for name, about in own.items()}
    return found


def _fashion(subject: Subject, shelves: Shelves, sizes: Sizes) -> dict[str, dict]:
    names = ("drawn_fashion_mnist_accuracy", "drawn_diversity", "drawn_closer_than_test")
    test_items, train_items = (shelves.of(split, fashion.SOURCE) for split in ("held_out", "train"))
    if not test_items or not train_items:
        return dict.fromkeys(("fashion_mnist_accuracy", *names), missing("the corpus has no Fashion-MNIST"))
    test, train = fashion.Wardrobe.of(test_items), fashion.Wardrobe.of(train_items)
    judge, linear = judges(grey(train.pixels), train.classes, len(train.names), shelves.corpus.checksum("train"))
    found = {"fashion_mnist_accuracy": fashion.read(subject, test.cut(sizes.fashion), linear)}
    if subject.codec is None:
        return found | dict.fromkeys(names, missing(NOTHING_DRAWN))
    return found | fashion.draw(subject, subject.codec, train, test, judge, sizes.drawn)


def _emoji(subject: Subject, shelves: Shelves, sizes: Sizes) -> dict[str, dict]:
    held_out, train = (shelves.of(split, *emoji.STYLES) for split in ("held_out", "train"))
    found = {"emoji_retrieval_at_1": emoji.retrieval(subject, held_out, train, sizes.emoji)}
    return found | emoji.captions(subject, held_out, sizes.emoji)


def _clips(subject: Subject, shelves: Shelves, sizes: Sizes) -> dict[str, dict]:
    held_out, train = (shelves.of(split, "sprites") for split in ("held_out", "train"))
    moving = clips.moving(held_out)
    drawn = missing(NOTHING_DRAWN)
    if subject.codec is not None:
        drawn = clips.drawn_directions(subject, subject.codec, moving[: sizes.films], train)
    return {
        "clip_object_accuracy": clips.objects(subject, moving, clips.moving(train), sizes.clips),
        "clip_direction_accuracy": clips.directions(subject, moving[: sizes.clips], train),
        "drawn_clip_direction_accuracy": drawn,
    }


def _speech(subject: Subject, shelves: Shelves, sizes: Sizes) -> dict[str, dict]:
    held_out, train = (shelves.of(split, "speech") for split in ("held_out", "train"))
    words, sentences = (hashed(own, "speech")[: sizes.speech] for own in speech.parted(held_out))
    found = speech.transcripts(subject, sentences)
    found["speech_word_accuracy"] = speech.word_accuracy(subject, words, speech.parted(train)[0])
    return found | {"speech_cer_real": _real(subject, sizes)}


def _real(subject: Subject, sizes: Sizes) -> dict:
    """The prompts of Asterisk, which may not be shipped."""
    if paths.find("corpora", REAL) is None:
        return missing(f"{REAL}: is not here; python corpora/build_tiny_omni.py --asterisk fetches it")
    items = hashed(OmniCorpus.open(REAL).items("held_out"), "real")[: sizes.real]
    return speech.error_rate(speech.written(subject, items, "real speech"), items)


def _sounds(subject: Subject, shelves: Shelves, sizes: Sizes) -> dict[str, dict]:
    held_out, train = (shelves.of(split, "sounds") for split in ("held_out", "train"))
    return {"sound_family_accuracy": sounds.families(subject, held_out[: sizes.speech], train)}


def _crossings(subject: Subject, shelves: Shelves, sizes: Sizes) -> dict[str, dict]:
    pictures, said = shelves.of("held_out", *emoji.STYLES), shelves.of("held_out", "speech")
    return {
        "cross_modal_accuracy": crossing.crossings(subject, pictures, said, sizes.questions),
        "hallucination_rate": crossing.hallucination(subject, pictures, sizes.questions),
    }


def _codec(subject: Subject, shelves: Shelves, sizes: Sizes) -> dict[str, dict]:
    if subject.codec is None:
        return {"codec_psnr": missing(NOTHING_DRAWN)}
    sources = ("fluent", "noto", fashion.SOURCE, "animated", "sprites")
    items = [item for source in sources for item in hashed(shelves.of("held_out", source), "codec")[: sizes.codec]]
    return {"codec_psnr": fidelity(subject.codec, items, subject.grids)}


def text(model: Transformer, corpus: Corpus, limit: int | None) -> dict:
    """Bits per byte of held-out text. Chance: every token as likely as any other; baseline: xz, the documents as one file."""
    began = time.perf_counter()
    scored = perplexity(model, corpus, limit=limit)
    documents = subset(list(corpus.documents("held_out")), limit, lambda document: document.id)
    whole = "\n".join(document.text for document in documents).encode()
    packed = 8 * len(lzma.compress(whole, preset=9 | lzma.PRESET_EXTREME)) / max(len(whole), 1)
    total = scored["total"]
    chance = total["tokens"] * math.log2(model.config.vocab_size) / max(total["bytes"], 1)
    more = {"documents": total["documents"], "window": scored["window"], "chance_is": "every token as likely as any other"}
    more["seconds"] = round(time.perf_counter() - began, 1)
    return figure(total["bits_per_byte"], total["bytes"], total["interval"], chance, packed, "xz", **more)
