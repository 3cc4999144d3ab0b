"""Rows made for long context: facts hidden in real text and asked for afterwards, and passages to be copied.

A needle is a sentence such as "The secret number of the harbor is 48213." Held-out needles are about other nouns and numbers than
those of training, in held-out text; the wordings are the same. A row is a pure function of (text, tokenizer, seed, number).
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fourfold.data.corpus import Corpus
from fourfold.data.haystack import Draw, Haystack
from fourfold.data.packing import tokenise
from fourfold.data.words import in_split, nouns
from fourfold.errors import DataError
from fourfold.text.tokenizer import Tokenizer

SHORTEST = 192  # tokens of a document, unless the row is shorter
LONGEST_COPY = 768
WHOLE, COPY, CONTINUE = 0.55, 0.35, 0.2  # chances: of a document filling the row, of copying, of continuing
TOKENS_PER_NEEDLE, MOST_NEEDLES = 64, 16
# per kind: how a needle is put, and how it is asked for
WORDINGS = {
    "number": (
        ("The secret number of the {k} is {v}.", "The number of the {k} is {v}.", "Remember that the {k} has the number {v}."),
        ("What is the number of the {k}?", "What is the secret number of the {k}?", "Which number does the {k} have?"),
    ),
    "code": (
        ("The code for the {k} is {v}.", "The {k} opens with the code {v}."),
        ("What is the code for the {k}?", "Which code opens the {k}?"),
    ),
    "word": (
        ('The password of the {k} is "{v}".', 'The secret word for the {k} is "{v}".'),
        ("What is the password of the {k}?", "What is the secret word for the {k}?"),
    ),
}
KINDS = ("number", "number", "number", "code", "code", "word")
SEVERAL = {"number": "What are the numbers of {}?", "code": "What are the codes for {}?", "word": "What are the passwords of {}?"}
REPEAT = ("Repeat the text above.", "Say the text above again, word for word.", "Copy the text above.")
CONTINUES = ("What comes after this?", "How does the text go on after this?", "Continue from here:")


@dataclass(frozen=True)
class Needle:
    """A fact that is said once."""

    kind: str
    key: str
    value: str
    said: str
    asked: str


@dataclass(frozen=True)
class NeedleTask:
    """A haystack and what to ask of it. `context` runs from `<|bos|>` to where a question's turn begins; `questions` has for each
    needle the ids of a turn through `<|assistant|>`, and those of the answer without `<|end|>`."""

    context: list[int]
    questions: list[tuple[list[int], list[int]]]


def needle_task(
    tokenizer: Tokenizer, haystack: np.ndarray, length: int, needles: int, seed: int, split: str = "held_out"
) -> NeedleTask:
    """Needles at even depths in a passage of `haystack` (tokens of the split); context, question and answer take `length` at most.

    Raises DataError when so many needles do not fit.
    """
    return NeedleMaker(Haystack(haystack, tokenizer), split).task(Draw(f"task/{split}/{seed}/{length}/{needles}"), length, needles)


class NeedleMaker:
    """Makes documents of one split out of a haystack."""

    def __init__(self, haystack: Haystack, split: str):
        self.haystack, self.split, self.tokenizer = haystack, split, haystack.tokenizer
        names = ("bos", "eos", "system", "user", "assistant", "end")
        self.bos, self.eos, self.system, self.user, self.assistant, self.end = (self.tokenizer.special(name) for name in names)

    def task(self, draw: Draw, length: int, count: int) -> NeedleTask:
        chosen = self.needles(draw, count)
        questions = [(self._question(needle.asked), self.tokenizer.encode(needle.value)) for needle in chosen]
        room = length - max((len(q) + len(a) for q, a in questions), default=0) - 3
        depths = [(i + draw.unit()) / count for i in range(count)]
        try:
            text = self._hidden(chosen, depths, draw, room)
        except ValueError:
            raise DataError(f"needles: {count} do not fit in {length} tokens; ask for fewer, or for a longer context") from None
        return NeedleTask([self.bos, self.system, *text, self.end], questions)

    def needles(self, draw: Draw, count: int) -> list[Needle]:
        """Needles about different things, no value part of another."""
        words = draw.some(nouns(self.split), 2 * count)
        found: list[Needle] = []
        for number, key in enumerate(words[:count]):
            kind = draw.pick(KINDS)
            value = words[count + number] if kind == "word" and count + number < len(words) else ""
            while not value or any(value in n.value or n.value in value for n in found):
                value = self._number(draw)
                kind = "number" if kind == "word" else kind
            said, asked = (draw.pick(ways) for ways in WORDINGS[kind])
            found.append(Needle(kind, key, value, said.format(k=key, v=value), asked.format(k=key)))
        return found

    def _number(self, draw: Draw) -> str:
        """Four or five digits that belong to the split."""
        while True:
            value = str(draw.below(90_000) + 10_000 if draw.unit() < 0.7 else draw.below(9_000) + 1_000)
            if in_split(value, self.split):
                return value

    def _hidden(self, chosen: list[Needle], depths: list[float], draw: Draw, room: int) -> list[int]:
        """The text with its needles, whose values it does not hold elsewhere. ValueError when they do not fit."""
        for _ in range(20):
            text, around = self.haystack.hide([needle.said for needle in chosen], depths, draw, room)
            if not any(needle.value in around for needle in chosen):
                return text
        raise ValueError("every passage holds one of the values")

    def _question(self, asked: str) -> list[int]:
        return [self.user, *self.tokenizer.encode(asked), self.end, self.assistant]

    def _turns(self, pairs: list[tuple[str, str]]) -> list[int]:
        encode = self.tokenizer.encode
        return [i for asked, told in pairs for i in (*self._question(asked), *encode(told), self.end)]

    def document(self, draw: Draw, room: int, may_be_shorter: bool) -> list[int]:
        """A document of `room` tokens (a copy may be shorter, where allowed): needles, a passage to copy, or one to continue."""
        if may_be_shorter and draw.unit() < COPY:
            return self._copy(draw, min(room, LONGEST_COPY))
        return self._continue(draw, room) if draw.unit() < CONTINUE else self._asked(draw, room)

    def _asked(self, draw: Draw, room: int) -> list[int]:
        """Every needle is asked for once, in another order than they stand, and some of them together."""
        most = max(min(room // TOKENS_PER_NEEDLE, MOST_NEEDLES), 1)
        count = 1 if draw.unit() < 0.1 else max(round(most * (0.4 + 0.6 * draw.unit())), 1)
        while count:
            chosen = self.needles(draw, count)
            turns = self._turns(self._pairs(chosen, draw))
            try:
                text = self._hidden(chosen, [draw.unit() for _ in chosen], draw, room - len(turns) - 4)
                return [self.bos, self.system, *text, self.end, *turns, self.eos]
            except ValueError:
                count //= 2
        return self._plain(draw, room)

    def _pairs(self, chosen: list[Needle], draw: Draw) -> list[tuple[str, str]]:
        pairs = [(needle.asked, needle.value) for needle in chosen]
        for kind in SEVERAL:
            alike = [needle for needle in chosen if needle.kind == kind]
            for _ in range(len(alike) // 3):
                some = draw.some(alike, 2 + draw.below(2))
                asked = SEVERAL[kind].format(_listing([f"the {needle.key}" for needle in some]))
                pairs.append((asked, _listing([needle.value for needle in some])))
        return draw.some(pairs, len(pairs))

    def _continue(self, draw: Draw, room: int) -> list[int]:
        """Questions that quote some tokens of the text; what follows them is the answer."""
        count = max(min(room // 128, 12), 1)
        turns: list[int] = []
        lengths = [(8 + draw.below(9), 12 + draw.below(37)) for _ in range(count)]
        asked = [self.tokenizer.encode(draw.pick(CONTINUES) + "\n") for _ in lengths]
        body = room - 4 - sum(sum(pair) + len(a) + 4 for pair, a in zip(lengths, asked, strict=True))
        if body < 2 * max(map(sum, lengths)):
            return self._plain(draw, room)
        text = self.haystack.passage(draw, body).tolist()
        for (quoted, told), lead in zip(lengths, asked, strict=True):
            at = draw.below(body - quoted - told)
            turns += [self.user, *lead, *text[at : at + quoted], self.end, self.assistant]
            turns += [*text[at + quoted : at + quoted + told], self.end]
        return [self.bos, self.system, *text, self.end, *turns, self.eos]

    def _copy(self, draw: Draw, room: int) -> list[int]:
        turn = self._question(draw.pick(REPEAT))
        size = (room - len(turn) - 5) // 2
        if size < 8:
            return self._plain(draw, room)
        text = self.haystack.passage(draw, size).tolist()
        return [self.bos, self.system, *text, self.end, *turn, *text, self.end, self.eos]

    def _plain(self, draw: Draw, room: int) -> list[int]:
        """Text alone, where there is no room for more."""
        return [self.bos, *self.haystack.passage(draw, max(room - 1, 0)).tolist()][:room]


class NeedleRows:
    """Rows of `length` + 1 tokens over the text of one split of a corpus, as many as one likes."""

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        length: int,
        split: str = "train",
        seed: int = 0,
        cache: Path | None = None,
        every: int = 1,
    ):
        self.maker = NeedleMaker(Haystack(tokenise(corpus, tokenizer, split, cache, every), tokenizer), split)
        self.key, self.width = f"needles/{split}/{seed}", length + 1

    def row_at(self, place: int) -> int:
        return place

    def take(self, rows: list[int]) -> tuple[Tensor, Tensor]:
        """The rows of these numbers: (tokens [B, T+1] int64, documents [B, T+1] int64)."""
        tokens = torch.tensor([self._row(row) for row in rows], dtype=torch.int64)
        first = torch.tensor(rows, dtype=torch.int64)[:, None] * self.width
        return tokens, first + (tokens == self.maker.bos).cumsum(1)

    def _row(self, row: int) -> list[int]:
        """One document, or several that fill the row."""
        draw = Draw(f"{self.key}/{row}")
        found: list[int] = []
        while left := self.width - len(found):
            last = left < 2 * SHORTEST or draw.unit() < WHOLE
            size = left if last else SHORTEST + draw.below(left - 2 * SHORTEST + 1)
            found += self.maker.document(draw, size, not last)
        return found


def _listing(items: list[str]) -> str:
    return ", ".join(items[:-1]) + " and " + items[-1]
