"""Where a patch or a code stands in its picture or clip, added to its vector: rotary positions compare two places, this names one.

    v + W f(frame, row, column) / 3      f(x) = cos(2 pi x / 2^k), sin(2 pi x / 2^k) for k = 1 .. waves, of each of the three

As the position embeddings of a ViT (2010.11929, section 3.1), but of waves (1706.03762, section 3.5), so that any size has them.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.modality import Modality
from fourfold.model.inputs import Batch, Context, document_starts, is_code
from fourfold.ops.linear import linear

AXES = 3  # frame, row, column


class Places(nn.Module):
    """Cells of a grid to vectors of the trunk."""

    def __init__(self, count: int, hidden: int) -> None:
        super().__init__()
        self.waves = nn.Parameter(torch.empty(hidden, 2 * AXES * count))

    def forward(self, cells: Tensor) -> Tensor:
        """cells [n, 3] int64 -> [n, d]."""
        lengths = 2.0 ** torch.arange(1, self.waves.shape[1] // (2 * AXES) + 1, device=cells.device)
        angles = (cells[..., None] * (2 * math.pi / lengths)).flatten(1)
        return linear((torch.cat([angles.cos(), angles.sin()], 1) / AXES).to(self.waves.dtype), self.waves)


def patch_cells(modality: Tensor) -> tuple[Tensor, list[int]]:
    """Frame, row and column [m, 3] of each patch of whole spans, and how many patches each picture or frame has.

    They follow from how spans are laid out: patches of a row stand side by side, rows are one token apart (a row's end), frames
    of a clip two, and what is not of one clip further.
    """
    places = ((modality == Modality.IMAGE) | (modality == Modality.VIDEO)).nonzero()[:, 0]
    gaps = F.pad(places.diff(), (1, 0), value=4)
    order, rows, frames = (x.cumsum(0) for x in (torch.ones_like(gaps), gaps > 1, gaps > 2))
    column = order - _since(gaps > 1, order)
    row, frame = rows - _since(gaps > 2, rows), frames - _since(gaps > 3, frames)
    return torch.stack([frame, row, column], 1), torch.bincount(frames - 1).tolist()


def code_cells(batch: Batch, context: Context) -> Tensor:
    """Tick, row and column [n, 3] of each code of a batch, counted from the first code of its drawing, which may be long past.

    Frames of a clip are one token apart, drawings further.
    """
    drawn, places = is_code(context.history.modality), torch.arange(context.history.modality.shape[1], device=batch.tokens.device)
    before = F.pad(drawn, (2, 0))
    first = torch.where(drawn & ~before[:, 1:-1] & ~before[:, :-2], places, 0).cummax(1).values
    anchors = first - document_starts(context.history.documents)  # positions count from where a document begins
    own = batch.unpad(anchors.gather(1, context.queries.clamp(max=anchors.shape[1] - 1)))
    return (batch.positions - own).T[is_code(batch.modality)]


def _since(begins: Tensor, counted: Tensor) -> Tensor:
    """What was counted where the last of `begins` was."""
    return torch.where(begins, counted, 0).cummax(0).values
