"""Which token may come next: words, and drawings that are whole or not begun.

In text any token may come but the marks of media; of these `<|draw|>` and `<|film|>` may, where the model draws, the caller allows
it, and the smallest drawing fits in what is left. Then comes a size that is allowed and fits. The rest of the drawing is not
chosen here: its layout says where codes stand, and all else is forced (canvas.py).
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from fourfold.config import ModelConfig
from fourfold.engine.layout import MOST_CODES, Layout, check_grid, largest_grids, layout_of, length, openings, parse_grid
from fourfold.errors import ConfigError
from fourfold.media.spans import Span
from fourfold.modality import Modality
from fourfold.text.tokenizer import Tokenizer

NEVER = "pad image /image audio /audio video /video row frame patch /draw /film".split()  # of the marks of media


class Grammar:
    """Where one sequence stands that is being generated.

    begun: the tokens that are there of a drawing, from its mark on; layout: what is drawn, once its size is known; drawn: the codes
    that a prompt brought. For a text-only model every token may come at any time.
    """

    def __init__(self, config: ModelConfig, tokenizer: Tokenizer, begin: bool = True, most: int = MOST_CODES) -> None:
        self.tokenizer, self.most = tokenizer, most
        self.begun: list[int] = []
        self.layout: Layout | None = None
        self.drawn: list[int] = []
        grids = largest_grids(config.media_out)
        self.marks = {tokenizer.special(name): grid for name, grid in grids.items()}
        self.never = forbidden(config, tokenizer, list(grids) if begin else [])

    def resume(self, prompt: Span, left: int) -> None:
        """Stand where a prompt ends, which may be inside a drawing, then one of any size: it was asked for.

        Raises ConfigError when that is no beginning of one, or does not fit in the tokens that are left.
        """
        if (tail := self._unfinished(prompt)) is None:
            return
        self.begun = tail.tokens.tolist()
        frame = self.tokenizer.special("frame")
        if frame not in self.begun:
            if not self._sizes(left):
                raise ConfigError(f"prompt: begins a drawing of no size that may be drawn in the {left} tokens left; allow more")
            return
        self.layout = self._sized(self.begun[: self.begun.index(frame) + 1])
        self.drawn = _codes(self.layout, tail)
        if (needed := len(self.layout) - len(tail)) > left:
            said = f"prompt: its drawing takes {needed} more tokens, and {left} are left"
            raise ConfigError(f"{said}; raise max_tokens, or choose a smaller drawing or a shorter prompt")

    def only(self, left: int) -> int | None:
        """The token that has to come next, where there is but one; `left` tokens may still come."""
        options = self._sizes(left) if self.begun else set()
        return next(iter(options)) if len(options) == 1 else None

    def masked(self, logits: Tensor, left: int) -> Tensor:
        """Logits [V] without what cannot come next."""
        if self.begun:
            kept = torch.tensor(sorted(self._sizes(left)), device=logits.device)
            return torch.full_like(logits, -torch.inf).index_copy(0, kept, logits[kept])
        large = [mark for mark in self.marks if not any(self._able(mark, left))]
        return without(logits, [*self.never, *large])

    def take(self, token: int) -> None:
        """A token has come."""
        if self.begun or token in self.marks:
            self.begun.append(token)
            if token == self.tokenizer.special("frame"):
                self.layout = self._sized(self.begun)

    def finish(self) -> None:
        """The drawing is whole, and text goes on."""
        self.begun, self.layout, self.drawn = [], None, []

    def _able(self, mark: int, room: int) -> Iterator[list[int]]:
        """What says a size, for every drawing that begins with this mark and fits in so many tokens."""
        sizes = openings(self.marks[mark], self.tokenizer)
        return (ids for grid, ids in sizes if length(grid, ids) <= room and math.prod(grid) <= self.most)

    def _sizes(self, left: int) -> set[int]:
        """What may go on saying a size that fits."""
        mark, *said = self.begun
        count = len(said)
        return {ids[count] for ids in self._able(mark, left + 1 + count) if ids[:count] == said and len(ids) > count}

    def _sized(self, opening: list[int]) -> Layout:
        mark, *said, _ = opening
        grid = parse_grid(self.tokenizer.decode(said))
        if grid is None or len(grid) != len(self.marks[mark]):
            raise ConfigError("prompt: begins a drawing whose size is none; say rows x columns, or frames x rows x columns")
        return layout_of(check_grid(grid, self.most), self.tokenizer)

    def _unfinished(self, prompt: Span) -> Span | None:
        """The end of a prompt from the mark of a drawing on that is not closed in it."""
        is_text = prompt.modality == Modality.TEXT
        marks = (is_text & torch.isin(prompt.tokens, torch.tensor(list(self.marks), dtype=torch.long))).nonzero()[:, 0]
        if not len(marks):
            return None
        tail = prompt.cut(int(marks[-1]), len(prompt))
        ends = torch.tensor([self.tokenizer.special(name) for name in ("/draw", "/film")])
        closed = torch.isin(tail.tokens[tail.modality == Modality.TEXT], ends).any()
        return None if closed else tail


def forbidden(config: ModelConfig, tokenizer: Tokenizer, begins: list[str]) -> list[int]:
    """The marks of media that may never come in text, but those in `begins`; none where all is text."""
    names = [*NEVER, *(name for name in ("draw", "film") if name not in begins)]
    return [tokenizer.special(name) for name in names] if config.has_media else []


def without(logits: Tensor, tokens: list[int]) -> Tensor:
    """Logits [..., V] with these tokens ruled out."""
    return logits.index_fill(-1, torch.tensor(tokens, device=logits.device), -torch.inf) if tokens else logits


def _codes(layout: Layout, tail: Span) -> list[int]:
    """The codes at the beginning of a drawing. Raises ConfigError unless all else is as its layout says."""
    expected = layout.span.cut(0, len(tail))
    is_code = expected.modality != Modality.TEXT
    alike = torch.equal(expected.modality, tail.modality) and torch.equal(expected.tokens, tail.tokens.masked_fill(is_code, 0))
    if not alike:
        raise ConfigError("prompt: ends in a drawing that is not laid out as one; give its opening, or codes that belong to it")
    return tail.tokens[is_code].tolist()
