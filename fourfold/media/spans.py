"""How media stand in a sequence: as patches to read between control tokens, or as codes that the model draws.

    read      <|image|> patch patch ... <|row|> patch ... <|row|> <|/image|>       a row of patches, a row end, any grid
              <|video|> <|frame|> as in a picture <|frame|> ... <|/video|>         a patch may be of several frames
              <|audio|> patch patch ... <|/audio|>                                 a patch is 80 ms of log-mel frames
    drawn     <|draw|>4x4<|frame|> code code ... <|/draw|>                         rows x columns, then as many codes
              <|film|>8x4x4<|frame|> codes <|frame|> codes ... <|/film|>           frames x rows x columns

Text takes its place in the document as its position on all three axes (time, row, column). A patch or code of a span that begins
at place s has (s + ticks, s + row, s + column), a tick being 80 ms; sound goes on like text, one tick a token. What follows a span
has its own place again, so a sequence can be continued knowing no more than its length.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.modality import Modality

if TYPE_CHECKING:
    from fourfold.text.tokenizer import Tokenizer

TICK = 0.08  # seconds: one step on the axis of time, and what one token of sound lasts
FILM_RATE = 8.0  # frames a second of clips that are drawn


@dataclass(frozen=True)
class Span:
    """A stretch of a sequence before it is embedded, a whole document or prompt included.

    tokens [n] int64: ids of the vocabulary, codes where something is drawn, 0 where a patch stands; modality [n] uint8;
    positions [3, n] int64 (time, row, column), from the span's first token on; pixels [m, G · 3 · P · P] uint8: the patches of
    pictures (G times the same) and of every G frames of clips, in their order; mel [k, frames · bins] fp32: those of sound. None
    where there are none.
    """

    tokens: Tensor
    modality: Tensor
    positions: Tensor
    pixels: Tensor | None = None
    mel: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def cut(self, start: int, stop: int) -> "Span":
        """The tokens [start, stop), with positions as they are and the patches that belong to them."""
        pixels = _cut(self.pixels, self._seen, start, stop)
        mel = _cut(self.mel, self.modality == Modality.AUDIO, start, stop)
        return Span(self.tokens[start:stop], self.modality[start:stop], self.positions[:, start:stop], pixels, mel)

    @property
    def _seen(self) -> Tensor:
        return (self.modality == Modality.IMAGE) | (self.modality == Modality.VIDEO)


def join(spans: Iterable[Span]) -> Span:
    """One after another; positions go on where the tokens before them end."""
    spans = list(spans)
    return _laid(spans, _places(spans))


def text(ids: Sequence[int]) -> Span:
    """Tokens of the vocabulary."""
    tokens = torch.as_tensor(ids, dtype=torch.long)
    return Span(tokens, torch.zeros(len(tokens), dtype=torch.uint8), torch.arange(len(tokens)).expand(3, -1))


def picture(pixels: Tensor, tokenizer: "Tokenizer", patch: int, together: int = 1) -> Span:
    """A picture to read: pixels uint8 [3, H, W], height and width multiples of the patch size; it stands for `together` frames."""
    return _framed(patches_of(pixels[None], patch).repeat(1, 1, 1, together), [0.0], Modality.IMAGE, tokenizer)


def clip(frames: Tensor, seconds: Sequence[float], tokenizer: "Tokenizer", patch: int, together: int = 1) -> Span:
    """A clip to read: frames uint8 [F, 3, H, W] and when each is shown; `together` of them share their patches.

    The last frame stays until such a group is full.
    """
    filled = torch.cat([frames, frames[-1:].expand(-len(frames) % together, -1, -1, -1)])
    grids = patches_of(filled, patch).unflatten(0, (-1, together)).permute(0, 2, 3, 1, 4).flatten(3)
    if len(seconds) != len(frames):
        raise ValueError(f"{len(frames)} frames are shown at {len(seconds)} times")
    return _framed(grids, seconds[::together], Modality.VIDEO, tokenizer)


def sound(mel: Tensor, tokenizer: "Tokenizer", frames: int) -> Span:
    """Sound to read: log-mel fp32 [T, bins], `frames` of them a token; the last is filled up with its quietest value."""
    if not len(mel):
        raise ValueError("the sound has no frames")
    filled = F.pad(mel, (0, 0, 0, -len(mel) % frames), value=float(mel.min()))
    patches = filled.reshape(len(filled) // frames, -1)
    heard = Span(*_blank(len(patches), Modality.AUDIO), _steps(len(patches)), mel=patches)
    return join([_control("audio", tokenizer), heard, _control("/audio", tokenizer)])


def drawing(codes: Tensor, tokenizer: "Tokenizer") -> Span:
    """A picture that is drawn: codes int64 [rows, columns]."""
    codes_only = code_frame(codes, 0, Modality.DRAWN)
    return join([draw_opening(tokenizer, *codes.shape), codes_only, _control("/draw", tokenizer)])


def film(codes: Tensor, tokenizer: "Tokenizer") -> Span:
    """A clip that is drawn: codes int64 [frames, rows, columns]."""
    parts = [film_opening(tokenizer, *codes.shape)]
    for index, frame in enumerate(codes):
        parts += [_control("frame", tokenizer)] * (index > 0) + [code_frame(frame, index, Modality.FILMED)]
    return _anchored([*parts, _control("/film", tokenizer)])


def draw_opening(tokenizer: "Tokenizer", rows: int, columns: int) -> Span:
    """What comes before the codes of a picture: all that a caller has to say for the model to draw one."""
    return _opening("draw", (rows, columns), tokenizer)


def film_opening(tokenizer: "Tokenizer", frames: int, rows: int, columns: int) -> Span:
    """What comes before the codes of a clip, the mark of its first frame included."""
    return _opening("film", (frames, rows, columns), tokenizer)


def code_frame(codes: Tensor, index: int, modality: Modality) -> Span:
    """The codes [rows, columns] of one frame of a clip, or of a picture; positions from the first code of the first frame on."""
    rows, columns = codes.shape
    kinds = torch.full((rows * columns,), modality, dtype=torch.uint8)
    return Span(codes.flatten(), kinds, grid_positions(rows, columns, index / FILM_RATE))


def grid_positions(rows: int, columns: int, seconds: float = 0.0) -> Tensor:
    """[3, rows · columns]: ticks, row and column of each cell, row by row."""
    ticks = torch.full((rows, columns), int(seconds / TICK + 1e-6))
    return torch.stack([ticks, *torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")]).flatten(1)


def patches_of(frames: Tensor, patch: int) -> Tensor:
    """uint8 [F, 3, H, W] -> [F, rows, columns, 3 · P · P]."""
    height, width = frames.shape[2:]
    if height % patch or width % patch or not height or not width:
        raise ValueError(f"a picture of {width} x {height} pixels does not divide into patches of {patch}; fit it first")
    return frames.unflatten(3, (-1, patch)).unflatten(2, (-1, patch)).permute(0, 2, 4, 1, 3, 5).flatten(3)


def _framed(grids: Tensor, seconds: Sequence[float], modality: Modality, tokenizer: "Tokenizer") -> Span:
    """Patches [F, rows, columns, values], each row of them closed, each frame of a clip opened."""
    name = "image" if modality is Modality.IMAGE else "video"
    parts = [_control(name, tokenizer)]
    for grid, shown in zip(grids, seconds, strict=True):
        parts += [_control("frame", tokenizer)] * (modality is Modality.VIDEO)
        rows, columns = grid.shape[:2]
        positions = grid_positions(rows, columns, shown).unflatten(1, (rows, columns))
        for row, places in zip(grid, positions.unbind(1), strict=True):
            parts += [Span(*_blank(len(row), modality), places, pixels=row), _control("row", tokenizer)]
    return _anchored([*parts, _control(f"/{name}", tokenizer)])


def _anchored(parts: list[Span]) -> Span:
    """Joined, with the positions of all that is not text counted from where the first of it stands."""
    places = _places(parts)
    is_text = [bool((part.modality == Modality.TEXT).all()) for part in parts]
    anchor = next((place for place, plain in zip(places, is_text, strict=True) if not plain), 0)
    return _laid(parts, [place if plain else anchor for place, plain in zip(places, is_text, strict=True)])


def _places(spans: list[Span]) -> list[int]:
    """Where each span begins."""
    return list(accumulate((len(span) for span in spans[:-1]), initial=0))


def _laid(spans: list[Span], offsets: list[int]) -> Span:
    """Spans end to end, the positions of each moved by its offset."""
    positions = torch.cat([span.positions + offset for span, offset in zip(spans, offsets, strict=True)], 1)
    tokens, modality = torch.cat([s.tokens for s in spans]), torch.cat([s.modality for s in spans])
    return Span(tokens, modality, positions, _joined([s.pixels for s in spans]), _joined([s.mel for s in spans]))


def _opening(name: str, grid: tuple[int, ...], tokenizer: "Tokenizer") -> Span:
    size = text(tokenizer.encode("x".join(map(str, grid))))
    return join([_control(name, tokenizer), size, _control("frame", tokenizer)])


def _control(name: str, tokenizer: "Tokenizer") -> Span:
    return text([tokenizer.special(name)])


def _blank(count: int, modality: Modality) -> tuple[Tensor, Tensor]:
    """Tokens and modality of patches."""
    return torch.zeros(count, dtype=torch.long), torch.full((count,), modality, dtype=torch.uint8)


def _steps(count: int) -> Tensor:
    return torch.arange(count).expand(3, -1)


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    present = [part for part in parts if part is not None]
    return torch.cat(present) if present else None


def _cut(patches: Tensor | None, owned: Tensor, start: int, stop: int) -> Tensor | None:
    """The patches of the places [start, stop), where `owned` [n] says which places have one."""
    if patches is None:
        return None
    first, count = int(owned[:start].sum()), int(owned[start:stop].sum())
    return patches[first : first + count] if count else None
