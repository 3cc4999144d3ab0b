"""Documents about pictures, clips, speech and sounds: chats made of items by templates.

    <|bos|><|user|>[media] What is this?<|end|><|assistant|>rabbit<|end|><|eos|>
    <|bos|><|user|>Draw a rabbit.<|end|><|assistant|><|draw|>8x8<|frame|>codes<|/draw|><|end|><|eos|>

In a tenth of what is drawn the user says nothing, `<|user|><|end|>`, which is what guidance compares with. A document is a pure
function of the items and of the draw that it is given.
"""

import re
from collections import defaultdict
from collections.abc import Sequence
from functools import cached_property

from fourfold.data import omni_wordings as words
from fourfold.data.haystack import Draw
from fourfold.data.omni import Item
from fourfold.data.omni_wordings import FIRST, LEARNT_AS, NO, SECOND, YES, with_article
from fourfold.data.script import MediaDocument, Said, Script, Speech
from fourfold.data.shelf import Shelf
from fourfold.errors import DataError
from fourfold.media.motion import region
from fourfold.media.spans import Span

ALOUD = 0.3  # share of what is asked about speech and pictures that is asked by the speech itself
DROPPED = 0.1  # share of what is drawn without being asked for
WORDS_FIRST = 0.3  # share of questions that come before their media
SHRUNK = 0.25  # share of large pictures that are read or drawn small
GROUND = 0.25  # share of pictures that are read on a ground of some colour, where they have clear parts
SPEEDS = 0.85, 1.18  # of speech that is heard to be learnt from
TIMBRE = 0.3, 0.4, 0.3, 0.2  # how high, at most, the waves are that colour it
# what is done with items of a kind, and how often where a mix does not say; what has 0 is done where a mix asks for it
TASKS: dict[str, dict[str, float]] = {
    "image": {"read": 0.25, "talk": 0.15, "ask": 0.15, "draw": 0.35, "turns": 0.1},
    "clip": {"read": 0.25, "talk": 0.25, "ask": 0.1, "draw": 0.3, "turns": 0.1, "way": 0.0},
    "speech": {"read": 0.7, "ask": 0.15, "draw": 0.15},
    "sound": {"read": 0.7, "ask": 0.3},
}


class Documents:
    """Makes documents about the items of some sources (named as in `Shelf.names`): of one task, or of all that fit them.

    Raises DataError for a task that none of the items fits.
    """

    def __init__(self, shelf: Shelf, sources: str = "", task: str = ""):
        self.shelf, self.tokenizer = shelf, shelf.tokenizer
        self.choices: list[tuple[str, list[str], list[float]]] = []
        for source in shelf.names(sources):
            usual = TASKS.get(shelf.kind(source), {})
            shares = {name: 1.0 for name in usual if name == task} if task else usual
            able = [name for name, share in shares.items() if share and self._able(source, name)]
            self.choices += [(source, able, [shares[name] for name in able])] * bool(able)
        if not self.choices:
            every = dict.fromkeys(name for tasks in TASKS.values() for name in tasks)
            said = f"no item of {shelf.split} is fit for it; choose a task of {', '.join(every)}"
            raise DataError(f"{shelf.corpus.corpus.name}:{sources}:{task}: {said}")

    def _able(self, source: str, task: str) -> bool:
        """Whether there is something else to ask for, and pictures of what speech names."""
        if task in ("draw", "turns") and self.shelf.codes is None:
            return False
        if self.shelf.kind(source) == "speech" and task != "read":
            return bool(self._pictured[source])
        if task == "way":
            return all(item.details.get("motion") for item in self.shelf.of(source))
        return task not in ("ask", "talk") or len({item.text for item in self.shelf.of(source)}) > 1

    def make(self, draw: Draw) -> MediaDocument:
        """A document of a source (all are equally frequent) and a task."""
        source, tasks, shares = draw.pick(self.choices)
        task, script = draw.weighed(tasks, shares), Script(self.tokenizer)
        if self.shelf.kind(source) == "speech" and task != "read":
            aloud = self._asked[source] if task == "ask" and draw.unit() < ALOUD else []
            speech, pictures = draw.pick(aloud or self._pictured[source])
            write = self._ask_aloud if aloud else self._ask_spoken if task == "ask" else self._draw_spoken
            write(script, draw, speech, draw.pick(pictures))
        else:
            getattr(self, f"_{task}")(script, draw, draw.pick(self.shelf.of(source)))
        return script.finish()

    def _read(self, script: Script, draw: Draw, item: Item) -> None:
        """What is it?"""
        if item.details.get("motion") and draw.unit() < 0.25:
            self._question(script, draw, item, [item], *self._motion(draw, item))
        else:
            self._question(script, draw, item, [item], *self._caption(draw, item))

    def _way(self, script: Script, draw: Draw, item: Item) -> None:
        """How does it move? Nothing else: of what is asked about clips it takes the most to learn."""
        self._question(script, draw, item, [item], *self._motion(draw, item))

    def _talk(self, script: Script, draw: Draw, item: Item) -> None:
        """Two to four questions about one and the same, none of a kind that was asked before."""
        kinds = [self._caption, self._compared]
        if item.details.get("motion"):
            kinds += [self._motion, self._where, self._where]
        for turn, ask in enumerate(draw.some(kinds, min(2 + draw.below(3), len(kinds)))):
            asked, told = ask(draw, item)
            if turn == 0:
                self._question(script, draw, item, [item], asked, told)
            else:
                script.user(asked)
                script.assistant(told, about=LEARNT_AS[item.kind])

    def _ask(self, script: Script, draw: Draw, item: Item) -> None:
        """Is there a ...? Is it this or that? Which of two?"""
        if item.kind == "image" and draw.unit() < 0.25:
            shown = draw.some((item, self._other(draw, item)), 2)
            asked = draw.pick(words.WHICH).format(a=with_article(name(item)))
            self._question(script, draw, item, shown, asked, FIRST if shown[0] is item else SECOND)
        else:
            self._question(script, draw, item, [item], *self._compared(draw, item))

    def _caption(self, draw: Draw, item: Item) -> tuple[str, str]:
        return draw.pick(words.READ[item.kind]), item.text

    def _motion(self, draw: Draw, item: Item) -> tuple[str, str]:
        return draw.pick(words.MOTION), item.details["motion"]

    def _where(self, draw: Draw, item: Item) -> tuple[str, str]:
        """Where what moves is at the beginning, or at the end, of what is shown of a clip."""
        at = draw.pick(("first", "last"))
        return draw.pick(words.WHERE[at]), region(self.shelf.frames(item)[0], 0 if at == "first" else -1)

    def _compared(self, draw: Draw, item: Item) -> tuple[str, str]:
        """This or another; or whether it is there."""
        other = self._other(draw, item)
        mine, theirs = with_article(name(item)), with_article(name(other))
        if draw.unit() < 0.3:
            first, second = draw.some((mine, theirs), 2)
            return draw.pick(words.EITHER[item.kind]).format(a=first, b=second), name(item)
        is_there = draw.unit() < 0.5
        return draw.pick(words.THERE[item.kind]).format(a=mine if is_there else theirs), YES if is_there else NO

    def _draw(self, script: Script, draw: Draw, item: Item) -> bool:
        """A picture or a clip from a caption, or from nothing; says whether it is a small one."""
        small = draw.unit() < SHRUNK
        wanted = with_article(item.text) if item.kind == "image" and draw.unit() < 0.5 else item.text
        asked = [] if draw.unit() < DROPPED else [draw.pick(words.DRAW[item.kind]).format(t=wanted)]
        script.user(*asked)
        script.assistant(self.shelf.drawn(item, small), about=LEARNT_AS[item.kind])
        return small

    def _turns(self, script: Script, draw: Draw, item: Item) -> None:
        """What was drawn is read back; or several items are read, one after the other."""
        if draw.unit() < 0.5:
            small = self._draw(script, draw, item)
            script.user(self.shelf.shown(item, small), draw.pick(words.DRAWN[item.kind]))
            script.assistant(item.text, about=LEARNT_AS[item.kind])
        else:
            for each in draw.some((item, self._other(draw, item)), 2):
                self._read(script, draw, each)

    def _ask_spoken(self, script: Script, draw: Draw, speech: Item, picture: Item) -> None:
        """Are these words about this picture, or about which of two?"""
        other = self._other(draw, picture)
        if draw.unit() < 0.5:
            shown = draw.some((picture, other), 2)
            asked, told = draw.pick(words.WHICH_SAID), FIRST if shown[0] is picture else SECOND
            self._question(script, draw, speech, [*shown, speech], asked, told)
        else:
            fits = draw.unit() < 0.5
            shown = draw.some((speech, picture if fits else other), 2)
            self._question(script, draw, speech, shown, draw.pick(words.MATCHES), YES if fits else NO)

    def _ask_aloud(self, script: Script, draw: Draw, speech: Item, picture: Item) -> None:
        """Is this a ...? The question is heard, not read."""
        fits = draw.unit() < 0.5
        shown = draw.some((picture if fits else self._other(draw, picture), speech), 2)
        script.user(*(self._shown(item, draw) for item in shown))
        script.assistant(YES if fits else NO, about=LEARNT_AS["speech"])

    def _draw_spoken(self, script: Script, draw: Draw, speech: Item, picture: Item) -> None:
        """A picture from a spoken caption."""
        asked = draw.pick(words.DRAW["speech"])
        script.user(self._shown(speech, draw), *[asked] * bool(asked))
        script.assistant(self.shelf.drawn(picture, draw.unit() < SHRUNK), about=LEARNT_AS["image"])

    def _question(self, script: Script, draw: Draw, about: Item, items: Sequence[Item], asked: str, told: str) -> None:
        """A turn with media and a question, in either order, and the answer."""
        shown: list[Said] = [self._shown(item, draw) for item in items]
        script.user(*([asked, *shown] if draw.unit() < WORDS_FIRST else [*shown, asked]))
        script.assistant(told, about=LEARNT_AS[about.kind])

    def _shown(self, item: Item, draw: Draw) -> Span | Speech:
        if item.kind == "speech":
            if self.shelf.split != "train":
                return Speech(self.shelf.shown(item), item.text)
            slow, fast = SPEEDS
            speed, timbre = slow * (fast / slow) ** draw.unit(), [height * (2 * draw.unit() - 1) for height in TIMBRE]
            return Speech(self.shelf.shown(item, speed=speed, timbre=timbre), item.text)
        small, has_ground, colour = draw.unit() < SHRUNK, draw.unit() < GROUND, tuple(draw.below(256) for _ in range(3))
        return self.shelf.shown(item, small, colour if has_ground else None)

    def _other(self, draw: Draw, item: Item) -> Item:
        """Another item of the source with another name, with no word in common where one is soon found."""
        items, own = self.shelf.of(item.source), plain(name(item))
        for _ in range(20):
            other = draw.pick(items)
            if not set(plain(name(other)).split()) & set(own.split()):
                return other
        return draw.pick([other for other in items if plain(name(other)) != own] or items)

    @cached_property
    def _pictured(self) -> dict[str, list[tuple[Item, list[Item]]]]:
        """For each source of speech the items whose words are the caption of pictures, and these pictures."""
        captioned = defaultdict(list)
        for item in self._of_kind("image"):
            captioned[plain(item.text)].append(item)
        sources = {item.source for item in self._of_kind("speech")}
        said = {source: [(i, plain(i.text)) for i in self.shelf.of(source)] for source in sources}
        return {source: [(i, captioned[words]) for i, words in items if words in captioned] for source, items in said.items()}

    @cached_property
    def _asked(self) -> dict[str, list[tuple[Item, list[Item]]]]:
        """For each source of speech the questions after a concept ("is this a rabbit"), and its pictures."""
        pictured, found = defaultdict(list), defaultdict(list)
        for item in self._of_kind("image"):
            pictured[item.details.get("code")].append(item)
        for item in self._of_kind("speech"):
            if item.details.get("task") == "question" and item.details.get("about") in pictured:
                found[item.source].append((item, pictured[item.details["about"]]))
        return found

    def _of_kind(self, kind: str) -> list[Item]:
        """Items of all sources of the corpus, not of the chosen ones alone."""
        shelf = self.shelf
        return [item for source in shelf.corpus.sources if shelf.kind(source) == kind for item in shelf.of(source)]


def name(item: Item) -> str:
    """What an item is called in a question: of a clip what moves, else its caption."""
    return item.details.get("object") or item.text


def plain(text: str) -> str:
    """Words alone, in small letters."""
    return " ".join(re.findall(r"\w+", text.lower()))
