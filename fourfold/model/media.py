"""What stands in place of a token's embedding where pictures, clips and sound are read: a vector for each patch.

    v = RMSNorm(W x + b)      x: a patch of pixels in [-1, 1] (of several frames, in a clip), or a stretch of log-mel frames

The norm's gain starts at `initializer_range`, the scale of the embedding table. Where a patch of pixels stands is added
(places.py). With a tower the patches of a picture (or a window of sound) look at each other first, in both directions; what
belongs to one place of the trunk then goes through a two-layer MLP.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from fourfold.config import MediaInConfig, ModelConfig
from fourfold.modality import Modality
from fourfold.model.experts import FeedForward
from fourfold.model.inputs import Batch, is_code, is_read
from fourfold.model.places import Places, patch_cells
from fourfold.model.rope import frequencies, rotate, tables
from fourfold.ops.attention import attend
from fourfold.ops.linear import Linear
from fourfold.ops.norm import RMSNorm

READS_NOTHING = "media_in: this model reads no pictures and no sound; choose one that has image_patch_size"
DRAWS_NOTHING = "media_out: this model draws nothing; choose one that has image_token_size"
TOWER_THETA = 10000.0
HALF_WHITE = 127.5  # bytes of pixels to -1 .. 1


class MediaIn(nn.Module):
    """Pixels and sound, each with a projection (and a tower) of its own."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        sizes = config.media_in
        self.patch, self.piece, self.window = sizes.image_patch_size, sizes.piece, sizes.audio_window
        self.frames = sizes.clip_patch_frames
        pieces, waves = (self.patch // self.piece) ** 2, sizes.image_place_waves
        self.pixels = Patches(self.frames * 3 * self.piece**2, pieces, sizes.tower_layers, config, waves)
        self.sound = Patches(sizes.audio_mel_bins * sizes.audio_frames_per_token, 1, sizes.audio_tower_layers, config)

    def forward(self, modality: Tensor, pixels: Tensor | None, mel: Tensor | None, dtype: torch.dtype) -> Tensor:
        """modality [N] of whole spans, pixels uint8 [m, G · 3 · P · P], mel [k, frames · bins] -> [m + k, d], in their order.

        Raises ValueError when there is not one patch for each place.
        """
        read = modality[is_read(modality)]
        heard = read == Modality.AUDIO
        found = {"pixels": 0 if pixels is None else len(pixels), "mel": 0 if mel is None else len(mel)}
        wanted = {"pixels": int((~heard).sum()), "mel": int(heard.sum())}
        for name in found:
            if found[name] != wanted[name]:
                raise ValueError(f"{name}: {found[name]} patches for {wanted[name]} places")
        if pixels is not None and pixels.shape[1] != self.frames * 3 * self.patch**2:
            raise ValueError(
                f"pixels: a patch of {self.frames} frames of {self.patch} x {self.patch} is not {pixels.shape[1]} bytes"
            )
        vectors = torch.zeros(len(read), self.pixels.norm.weight.shape[0], dtype=dtype, device=modality.device)
        if found["pixels"]:
            vectors = vectors.masked_scatter(~heard[:, None], self.see(modality, pixels, dtype))
        if found["mel"]:
            vectors = vectors.masked_scatter(heard[:, None], self.hear(modality, mel, dtype))
        return vectors

    def see(self, modality: Tensor, pixels: Tensor, dtype: torch.dtype) -> Tensor:
        """The vectors [m, d] of the patches of whole pictures and frames."""
        cells, sizes = patch_cells(modality)
        side, across = self.piece, self.patch // self.piece
        pieces = pixels.unflatten(1, (-1, across, side, across, side)).permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        inner = torch.cartesian_prod(*[torch.arange(across, device=cells.device)] * 2).view(-1, 2)
        places = (cells[:, None, 1:] * across + inner).flatten(0, 1).T  # row and column of every piece
        return self.pixels((pieces.float() / HALF_WHITE - 1).to(dtype), places, [size * across**2 for size in sizes], cells)

    def hear(self, modality: Tensor, mel: Tensor, dtype: torch.dtype) -> Tensor:
        """The vectors [k, d] of whole sounds; a tower looks at a window of each at a time, from its beginning on."""
        places, sizes = windows(modality, self.window)
        return self.sound(mel.to(dtype)[:, None], places[None], sizes)


class Patches(nn.Module):
    """Patches of one kind to vectors of the trunk, each made of `pieces` that a tower looks at by themselves."""

    def __init__(self, inputs: int, pieces: int, layers: int, config: ModelConfig, waves: int = 0) -> None:
        super().__init__()
        sizes, hidden = config.media_in, config.hidden_size
        self.gain = config.initializer_range
        self.proj = Linear(inputs, sizes.tower_hidden_size if layers else hidden, bias=True)
        self.tower = Tower(sizes, layers, config.rms_norm_eps) if layers else None
        if layers:
            self.up_proj = Linear(pieces * sizes.tower_hidden_size, hidden, bias=True)
            self.down_proj = Linear(hidden, hidden, bias=True)
        self.places = Places(waves, hidden) if waves else None
        self.norm = RMSNorm(hidden, config.rms_norm_eps)
        self.reset()

    @torch.no_grad()
    def reset(self) -> None:
        """Start at the scale of the embedding table."""
        self.norm.weight.fill_(self.gain)

    def forward(self, pieces: Tensor, places: Tensor, sizes: list[int], cells: Tensor | None = None) -> Tensor:
        """pieces [m, p, i]; places [A, m · p] on A axes; sizes: pieces of each picture or window; cells [m, 3] -> [m, d]."""
        x = self.proj(pieces)
        if self.tower is None:
            x = x[:, 0]
        else:
            x = self.tower(x.flatten(0, 1), places, sizes).unflatten(0, pieces.shape[:2]).flatten(1)
            x = self.down_proj(F.gelu(self.up_proj(x)))
        vectors = self.norm(x)
        return vectors if self.places is None else vectors + self.places(cells)


class Tower(nn.Module):
    """A small transformer within each picture (ViT, 2010.11929): rotary positions on its axes in turn, RMSNorm and SwiGLU."""

    def __init__(self, sizes: MediaInConfig, layers: int, eps: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TowerLayer(sizes, eps) for _ in range(layers))
        self.norm = RMSNorm(sizes.tower_hidden_size, eps)
        turns = frequencies(sizes.tower_hidden_size // sizes.tower_heads, TOWER_THETA, None)
        self.register_buffer("turns", turns, persistent=False)

    def forward(self, x: Tensor, places: Tensor, sizes: list[int]) -> Tensor:
        """x [M, D], places [A, M], the patches of each picture one after the other -> [M, D]."""
        rotary = tables(places, self.turns)
        for layer in self.layers:
            x = layer(x, rotary, sizes)
        return self.norm(x)


class TowerLayer(nn.Module):
    def __init__(self, sizes: MediaInConfig, eps: float) -> None:
        super().__init__()
        width, self.heads = sizes.tower_hidden_size, sizes.tower_heads
        self.attention_norm, self.ffn_norm = RMSNorm(width, eps), RMSNorm(width, eps)
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (Linear(width, width) for _ in range(4))
        self.ffn = FeedForward(width, sizes.tower_intermediate_size)

    def forward(self, x: Tensor, rotary: tuple[Tensor, Tensor], sizes: list[int]) -> Tensor:
        x = x + self.attention(self.attention_norm(x), rotary, sizes)
        return x + self.ffn(self.ffn_norm(x))

    def attention(self, x: Tensor, rotary: tuple[Tensor, Tensor], sizes: list[int]) -> Tensor:
        """Every patch reads all of its own picture."""
        q, k, v = (proj(x).unflatten(-1, (self.heads, -1)) for proj in (self.q_proj, self.k_proj, self.v_proj))
        q, k = (rotate(y, *rotary, interleaved=True) for y in (q, k))
        q, k, v = (pad_sequence(y.split(sizes), batch_first=True) for y in (q, k, v))
        there = torch.arange(q.shape[1], device=x.device) < torch.tensor(sizes, device=x.device)[:, None]
        mask = None if bool(there.all()) else there[:, None].expand(-1, q.shape[1], -1)
        return self.o_proj(attend(q, k, v, mask, (q.shape[-1]) ** -0.5)[there].flatten(1))


def with_media(words: Tensor, batch: Batch, codes: Tensor | None) -> Tensor:
    """words [N, d], the embeddings of a batch's text, with what stands at other places put there: its vectors, and codes [n, d].

    Raises ValueError for vectors that do not fit.
    """
    read = is_read(batch.modality)
    places, given = int(read.sum()), 0 if batch.vectors is None else len(batch.vectors)
    if places != given:
        raise ValueError(f"the batch reads at {places} places and has {given} vectors; see Transformer.look")
    if places:
        words = words.masked_scatter(read[:, None], batch.vectors.to(words.dtype))
    return words if codes is None else words.masked_scatter(is_code(batch.modality)[:, None], codes)


def windows(modality: Tensor, length: int) -> tuple[Tensor, list[int]]:
    """Place [k] of each stretch of sound within its window of at most `length`, and how many each window has."""
    places = (modality == Modality.AUDIO).nonzero()[:, 0]
    order, begins = torch.arange(len(places), device=places.device), F.pad(places.diff(), (1, 0), value=2) > 1
    within = (order - torch.where(begins, order, 0).cummax(0).values) % length
    return within, _sizes(within == 0)


def _sizes(begins: Tensor) -> list[int]:
    """How many follow from each beginning to the next."""
    return torch.bincount(begins.cumsum(0) - 1).tolist()
