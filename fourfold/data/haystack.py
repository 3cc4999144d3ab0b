"""Passages of real text, without chats and control tokens, and putting sentences into them."""

from collections.abc import Sequence
from random import Random
from typing import TypeVar

import numpy as np

from fourfold.errors import DataError
from fourfold.text.tokenizer import Tokenizer

T = TypeVar("T")


class Draw:
    """Choices that depend on a key alone. Only `Random.random` is asked, which gives the same numbers in every Python."""

    def __init__(self, key: str):
        self.unit = Random(key).random  # in [0, 1)

    def below(self, count: int) -> int:
        return int(self.unit() * count)

    def pick(self, options: Sequence[T]) -> T:
        return options[self.below(len(options))]

    def weighed(self, options: Sequence[T], shares: Sequence[float]) -> T:
        """One of them, each as often as its share says."""
        left = self.unit() * sum(shares)
        for option, share in zip(options, shares, strict=True):
            left -= share
            if left < 0:
                return option
        return options[-1]

    def some(self, options: Sequence[T], count: int) -> list[T]:
        """`count` different ones (or all there are), in a drawn order."""
        left = list(options)
        return [left.pop(self.below(len(left))) for _ in range(min(count, len(left)))]


class Haystack:
    """The plain documents of a stream of tokens (`<|bos|> ... <|eos|>` each), as one text to take passages from."""

    def __init__(self, stream: np.ndarray, tokenizer: Tokenizer):
        self.stream, self.tokenizer = stream, tokenizer
        ids = range(tokenizer.vocab_size)
        texts = [tokenizer.bytes_of(i) for i in ids]
        self._control = np.array([i in tokenizer.special_ids for i in ids])
        self._ends_line = np.array([text.endswith(b"\n") for text in texts])
        self._ends = self._ends_line | np.array([text.rstrip().endswith((b".", b"!", b"?")) for text in texts])
        self._starts = np.array([text.startswith((b" ", b"\n")) for text in texts])
        self._between = np.asarray(tokenizer.encode("\n\n"))

    def passage(self, draw: Draw, count: int) -> np.ndarray:
        """`count` tokens of running text from a drawn place, from the start of a sentence where one is near.

        Raises DataError when the stream holds chats only.
        """
        if not len(self.stream):
            raise DataError("needles: there is no text to hide them in; choose a corpus with plain documents")
        start, width = draw.below(len(self.stream)), count + 512
        while True:
            plain = self._plain(start, width)
            breaks = self.breaks(plain[:256])
            begin = int(breaks[0]) if len(breaks) else 0
            if len(plain) >= begin + count:
                return plain[begin : begin + count]
            if width > 4 * (len(self.stream) + count) and not len(plain):
                raise DataError("needles: there are only chats to hide them in; choose a corpus with plain documents")
            width *= 2

    def _plain(self, start: int, width: int) -> np.ndarray:
        """The plain text in a window of the stream (which starts again at its end)."""
        window = np.asarray(self.stream[np.arange(start, start + width) % len(self.stream)], np.int64)
        bos, eos = self.tokenizer.special("bos"), self.tokenizer.special("eos")
        document = np.cumsum(window == bos)
        in_chat = self._control[window] & (window != bos) & (window != eos)
        chats = np.bincount(document, in_chat) > 0
        kept = ~chats[document] & ((window == eos) | ~self._control[window])
        return _replaced(window[kept], eos, self._between)

    def breaks(self, ids: np.ndarray) -> np.ndarray:
        """Where a sentence may be put in: places with the end of a sentence or line before them and no word cut in two."""
        fits = self._ends_line[ids[:-1]] | (self._ends[ids[:-1]] & self._starts[ids[1:]])
        return np.flatnonzero(fits) + 1

    def hide(self, sentences: list[str], depths: list[float], draw: Draw, room: int) -> tuple[list[int], str]:
        """A text of exactly `room` tokens with the sentences at these depths (0 to 1), and the passage around them as text.

        Raises ValueError when the sentences leave no room for any text.
        """
        encode = self.tokenizer.encode
        inline, own_line = [encode(" " + s) for s in sentences], [encode(s + "\n") for s in sentences]
        least = room - sum(max(len(a), len(b)) for a, b in zip(inline, own_line, strict=True))
        if least < len(sentences) + 2:
            raise ValueError("no room for the sentences")
        passage = self.passage(draw, room)
        breaks = self.breaks(passage[:least])
        places = []
        for depth in depths:
            later = breaks[breaks >= depth * least]
            places.append(int(later[0]) if len(later) else int(breaks[-1]) if len(breaks) else 0)
        found: list[int] = []
        at = 0
        for place, index in sorted(zip(places, range(len(places)), strict=True)):
            found += passage[at:place].tolist()
            found += (own_line if place == 0 or self._ends_line[passage[place - 1]] else inline)[index]
            at = place
        around = passage[: room - (len(found) - at)]
        return found + around[at:].tolist(), self.tokenizer.decode(around)


def _replaced(ids: np.ndarray, old: int, new: np.ndarray) -> np.ndarray:
    """`ids` with every `old` written as the tokens of `new`."""
    counts = np.where(ids == old, len(new), 1)
    result = np.repeat(ids, counts)
    result[np.repeat(ids == old, counts)] = np.tile(new, int((ids == old).sum()))
    return result
