"""Engram: conditional memory looked up by the n-gram that ends at a token (2601.07372, section 2; released demo code).

    ids   = hash of the last 2..N compressed tokens, several heads per order, each modulo a prime of its own
    e     = the rows of all heads side by side;  v = W_v e;  k_m = W_k,m e for each residual stream m
    α_m   = σ(signed sqrt(RMSNorm(h_m) · RMSNorm(k_m) / √d))
    Y_m   = SiLU(conv(RMSNorm(α_m v))) + α_m v;  X ← X + Y

Ids depend on tokens alone, so rows can be fetched early, and v is the same whenever it is computed. The layer state therefore
keeps only the gates α (one number a stream and token): the convolution's past inputs follow from them and from the tokens.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fourfold.config import MemoryConfig, ModelConfig
from fourfold.modality import Modality
from fourfold.model.inputs import Context
from fourfold.model.state import Fields, LayerState
from fourfold.ops.linear import Linear
from fourfold.ops.norm import rms_norm
from fourfold.weights.stores import ResidentStore, Store

LAYER_PRIME = 10007  # the released code seeds a layer's multipliers with seed + 10007 · layer


def is_prime(n: int) -> bool:
    """Miller-Rabin with the bases that decide every n below 3.3e24."""
    bases = (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41)
    if n < 2 or any(n % p == 0 for p in bases):
        return n in bases
    odd, twos = n - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in bases:
        x = pow(base, odd, n)
        if x not in (1, n - 1) and all((x := x * x % n) != n - 1 for _ in range(twos - 1)):
            return False
    return True


def table_primes(memory: MemoryConfig) -> dict[int, list[list[int]]]:
    """layer -> rows of each head [orders][heads]: successive primes from the asked size on, none used twice in the model."""
    used: set[int] = set()

    def next_prime(after: int) -> int:
        candidate = after + 1
        while candidate in used or not is_prime(candidate):
            candidate += 1
        used.add(candidate)
        return candidate

    primes: dict[int, list[list[int]]] = {}
    for layer in memory.engram_layers:
        primes[layer] = []
        for size in memory.engram_vocab_size:
            heads, last = [], size - 1
            for _ in range(memory.engram_heads):
                last = next_prime(last)
                heads.append(last)
            primes[layer].append(heads)
    return primes


def multipliers(memory: MemoryConfig, layer: int, classes: int) -> list[int]:
    """Odd hash multipliers, one for each place in the longest n-gram, small enough that no product leaves int64."""
    bound = max(1, (np.iinfo(np.int64).max // classes) // 2)
    draws = np.random.default_rng(memory.engram_seed + LAYER_PRIME * layer).integers(0, bound, memory.max_ngram, np.int64)
    return [int(draw) * 2 + 1 for draw in draws]


class Engram(nn.Module):
    """One layer's memory. `table` is a store: its rows may be resident or mapped from a file."""

    def __init__(self, config: ModelConfig, layer: int, primes: list[list[int]]) -> None:
        super().__init__()
        memory = config.memory
        hidden, branches = config.hidden_size, config.streams.hc_mult if config.streams else 1
        self.memory, self.eps, self.branches = memory, config.rms_norm_eps, branches
        heads = [rows for order in primes for rows in order]
        classes = memory.engram_compressed_vocab_size or config.vocab_size
        self.multipliers = multipliers(memory, layer, classes)
        self.register_buffer("head_sizes", torch.tensor(heads, device="cpu"), persistent=False)
        starts = torch.tensor([0, *heads[:-1]], device="cpu").cumsum(0)
        self.register_buffer("head_starts", starts, persistent=False)
        self.table: Store = ResidentStore(sum(heads), memory.engram_dim // memory.engram_heads)
        self.key_proj = Linear(memory.width, branches * hidden)
        self.value_proj = Linear(memory.width, hidden)
        self.query_norm = nn.Parameter(torch.ones(branches, hidden))
        self.key_norm = nn.Parameter(torch.ones(branches, hidden))
        self.conv_norm = nn.Parameter(torch.ones(branches, hidden))
        self.conv = nn.Parameter(torch.zeros(memory.engram_kernel_size, branches, hidden))  # oldest tap first

    def fields(self) -> Fields:
        return {"gate": ((self.branches,), torch.float32)}

    @property
    def reach(self) -> int:
        """How many earlier tokens the convolution looks back on: kernel 4, dilated by the longest n-gram."""
        return (self.memory.engram_kernel_size - 1) * self.memory.max_ngram

    def forward(self, streams: Tensor, classes: Tensor, context: Context, state: LayerState | None = None) -> Tensor:
        """streams [N, n, d]; classes [S, K]: the history's compressed tokens. Returns Y [N, n, d], zero outside text."""
        batch = context.batch
        back = min(self.reach, int(context.past.max()))
        places = context.queries[:, :1] + torch.arange(-back, batch.longest, device=classes.device)  # [S, back + L]
        rows = self.table.fetch(self.row_ids(classes, places, context)).flatten(-2)  # [S, back + L, width]
        rows = rows.to(streams.dtype)
        gates = self.gates(streams, batch.unpad(rows[:, back:]))  # [N, n]
        if state is not None:
            state.append(batch.lengths, gate=gates)
        known = batch.pad(gates) if back == 0 else self._with_past(state.read("gate"), places, batch.pad(gates), back)
        values = known.to(rows.dtype)[..., None] * self.value_proj(rows)[:, :, None]  # [S, back + L, n, d]
        out = F.silu(self.convolve(values, places, context, back)) + values[:, back:]
        is_text = (batch.modality == Modality.TEXT).to(out.dtype)
        return batch.unpad(out) * is_text[:, None, None]

    def _with_past(self, remembered: Tensor, places: Tensor, current: Tensor, back: int) -> Tensor:
        earlier = places[:, :back].clamp(min=0)[..., None].expand(-1, -1, self.branches)
        return torch.cat([remembered.gather(1, earlier).to(current.dtype), current], dim=1)

    def row_ids(self, classes: Tensor, places: Tensor, context: Context) -> Tensor:
        """Table rows [S, P, orders · heads] of the n-grams that end at `places` [S, P]; an n-gram never leaves its document."""
        mixed, hashes = torch.zeros_like(places), []
        together = torch.ones_like(places, dtype=torch.bool)
        for shift in range(self.memory.max_ngram):
            together = together & self.linked(places, shift, context)  # nor does it reach across a picture
            token = classes.gather(1, (places - shift).clamp(0, classes.shape[1] - 1))
            mixed = mixed ^ (torch.where(together, token, self.memory.engram_pad_id) * self.multipliers[shift])
            if shift > 0:
                hashes.append(mixed[..., None].expand(*mixed.shape, self.memory.engram_heads))
        return torch.cat(hashes, -1) % self.head_sizes + self.head_starts

    def linked(self, places: Tensor, shift: int, context: Context) -> Tensor:
        """[S, P] bool: the token `shift` before each place exists, is text, and belongs to the same document."""
        last = context.history.tokens.shape[1] - 1
        here, there = places.clamp(0, last), (places - shift).clamp(0, last)
        documents, modality = context.history.documents, context.history.modality
        same = documents.gather(1, here) == documents.gather(1, there)
        return same & (modality.gather(1, there) == Modality.TEXT) & (places >= shift)

    def gates(self, streams: Tensor, rows: Tensor) -> Tensor:
        """α [N, n] in fp32: how well each stream's state agrees with what was found."""
        keys = rms_norm(self.key_proj(rows).unflatten(-1, (self.branches, -1)), self.key_norm, self.eps)
        queries = rms_norm(streams, self.query_norm, self.eps)
        scores = (queries.float() * keys.float()).sum(-1) * streams.shape[-1] ** -0.5
        return (scores.sign() * scores.abs().clamp(min=1e-6).sqrt()).sigmoid()

    def convolve(self, values: Tensor, places: Tensor, context: Context, back: int) -> Tensor:
        """Depthwise causal convolution over RMSNorm(values) [S, back + L, n, d], within documents -> [S, L, n, d]."""
        normed = rms_norm(values, self.conv_norm, self.eps)
        total = normed[:, back:] * self.conv[-1]
        dilation, taps = self.memory.max_ngram, self.memory.engram_kernel_size
        for tap in range(1, taps):
            shift = tap * dilation
            earlier = F.pad(normed, (0, 0, 0, 0, shift, 0))[:, back : back + total.shape[1]]
            seen = self.linked(places[:, back:], shift, context).to(normed.dtype)
            total = total + earlier * self.conv[taps - 1 - tap] * seen[..., None, None]
        return total
