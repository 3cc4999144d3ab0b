"""The whole network: embeddings, layers, heads; one forward for training, chunked prefill and decode."""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from torch import Tensor, nn

from fourfold.config import ModelConfig
from fourfold.errors import ConfigError
from fourfold.media.spans import Span, join
from fourfold.modality import Modality
from fourfold.model.compressor import new_blocks
from fourfold.model.engram import Engram, table_primes
from fourfold.model.experts import Experts, Router
from fourfold.model.inputs import Batch, Context, History, is_code, is_read
from fourfold.model.layer import Layer
from fourfold.model.media import DRAWS_NOTHING, READS_NOTHING, MediaIn, Patches, with_media
from fourfold.model.mtp import NextTokenLayer
from fourfold.model.places import Places, code_cells
from fourfold.model.rope import all_frequencies, tables, yarn_table_scale
from fourfold.model.state import INPUT_FIELDS, PLACED_FIELDS, Cache
from fourfold.model.streams import Collapse, HyperConnections
from fourfold.model.trace import Trace
from fourfold.ops.linear import linear
from fourfold.ops.norm import RMSNorm

SET_BY_MODULE = ("conv", "conv_norm", "query_norm", "key_norm")  # Engram's start at zero and one


@dataclass
class Output:
    """What `model(tokens)` gives: `logits` [B, T, V] for tokens [B, T], or [N, V] for a Batch; fp32."""

    logits: Tensor
    trace: Trace | None = None


@dataclass
class TrainOutput:
    """Final-normed states for the losses: `hidden` [N, d], and for each further depth j the states that predict t_{i+2+j}."""

    hidden: Tensor
    mtp_hidden: list[Tensor] = field(default_factory=list)


class Transformer(nn.Module):
    """A causal language model as its config describes it.

    `token_classes` [vocab_size] int64: Engram's tokenizer compression; by default every token is its own class. The weights are
    not set: call `init_weights`, or load a checkpoint.
    """

    def __init__(self, config: ModelConfig, token_classes: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.embed = nn.Embedding(config.vocab_size, hidden)
        self.media = MediaIn(config) if config.media_in else None
        codes, waves = (config.media_out.image_token_size, config.media_out.code_place_waves) if config.media_out else (0, 0)
        self.code_embed = nn.Embedding(codes, hidden) if codes else None
        self.code_places = Places(waves, hidden) if waves else None
        self.code_head = nn.Parameter(torch.empty(codes, hidden)) if codes else None
        primes = table_primes(config.memory) if config.memory else {}
        self.layers = nn.ModuleList(
            Layer(config, i, Engram(config, i, primes[i]) if i in primes else None) for i in range(config.num_hidden_layers)
        )
        self.collapse = Collapse(hidden, config.streams, eps)
        self.norm = RMSNorm(hidden, eps)
        if not config.tie_word_embeddings:
            self.head = nn.Parameter(torch.empty(config.vocab_size, hidden))
        self.mtp = nn.ModuleList(NextTokenLayer(config, j) for j in range(config.num_nextn_predict_layers))
        self._add_buffers(token_classes)

    def _add_buffers(self, token_classes: Tensor | None) -> None:
        turns, compression = all_frequencies(self.config), self.config.compression
        self.turns = list(turns)
        self.rope_scale = 1.0 if compression else yarn_table_scale(self.config.attention.rope_scaling)
        self.ratios = sorted(set(compression.compress_ratios) - {0}) if compression else []
        for name, values in turns.items():
            self.register_buffer(f"{name}_turns", values, persistent=False)
        if self.config.memory is not None:
            classes = torch.arange(self.config.vocab_size) if token_classes is None else token_classes
            _check_classes(classes, self.config)
            self.register_buffer("token_classes", classes)

    def forward(
        self,
        tokens: Tensor | Batch,
        cache: Cache | None = None,
        trace: Trace | None = None,
        selection: str = "sparse",
    ) -> Output:
        """tokens int64 [B, T] (or a Batch). With a cache, they go on from what it has seen, and it is extended.

        `selection`: "dense" reads everything visible even where there is an indexer, as before its training.
        """
        if isinstance(tokens, Batch):
            return Output(self.logits(self.trunk(tokens, cache, trace, selection)), trace)
        past = None if cache is None else _check_fit(cache.lengths, len(tokens))
        batch = Batch.from_tokens(tokens, past=past)
        logits = self.logits(self.trunk(batch, cache, trace, selection))
        return Output(logits.unflatten(0, tokens.shape), trace)

    def trunk(self, batch: Batch, cache: Cache | None = None, trace: Trace | None = None, selection: str = "sparse") -> Tensor:
        """Final-normed hidden states [N, d]."""
        return self.norm(self.collapse(self.streams(batch, cache, trace, selection)))

    def streams(self, batch: Batch, cache: Cache | None = None, trace: Trace | None = None, selection: str = "sparse") -> Tensor:
        """The residual streams [N, n, d] behind the last layer, from which multi-token prediction goes on."""
        self._catch_up(cache, selection)
        return self._run(self.context(batch, cache, trace, selection), cache)

    def train_forward(self, batch: Batch, trace: Trace | None = None, selection: str = "sparse") -> TrainOutput:
        """The states that the losses need, multi-token prediction included.

        Its depths embed what comes next as the trunk embeds it, codes and patches too; only words are worth predicting from them.
        """
        context = self.context(batch, None, trace, selection)
        streams = self._run(context, None)
        hidden = self.collapse(streams)
        out = TrainOutput(self.norm(hidden))
        embedded = self.embedded(batch, context) if self.mtp else None
        for layer in self.mtp:
            embedded = batch.shifted(embedded)  # what is shifted in from beyond the end is masked by the loss
            streams, hidden, normed = layer(streams, hidden, embedded, context)
            out.mtp_hidden.append(normed)
        return out

    def batch(self, rows: Sequence[Span | Sequence[Span]]) -> Batch:
        """A Batch of whole spans, with the vectors of what they show: each row one sequence, a list its packed documents."""
        batch = Batch.from_spans(rows).to(self.embed.weight.device)
        if self.code_embed is None and is_code(batch.modality).any():
            raise ConfigError(DRAWS_NOTHING)
        if not is_read(batch.modality).any():
            return batch
        whole = join([span for row in rows for span in ([row] if isinstance(row, Span) else row)])
        return replace(batch, vectors=self.look(batch.modality, whole.pixels, whole.mel))

    def look(self, modality: Tensor, pixels: Tensor | None = None, mel: Tensor | None = None) -> Tensor:
        """Vectors [m + k, d] of what is read at the places of `modality` [N], in their order, for `Batch.vectors`.

        pixels uint8 [m, 3 · P · P], mel [k, frames · bins]. A tower looks at whole pictures: cut a Batch, not what is looked at.
        """
        if self.media is None:
            raise ConfigError(READS_NOTHING)
        weight = self.embed.weight
        modality, *patches = (None if x is None else x.to(weight.device) for x in (modality, pixels, mel))
        return self.media(modality, *patches, weight.dtype)

    def embedded(self, batch: Batch, context: Context) -> Tensor:
        """[N, d]: of a word its embedding, of a code that of its own table and place, and the vector given for what is read."""
        if self.media is None and batch.vectors is not None:
            raise ConfigError(READS_NOTHING)
        if not self.config.has_media or not batch.modality.any():
            return self.embed(batch.tokens)
        words = self.embed(batch.tokens.masked_fill(batch.modality != Modality.TEXT, 0))
        return with_media(words, batch, self._codes(batch, context) if is_code(batch.modality).any() else None)

    def _codes(self, batch: Batch, context: Context) -> Tensor:
        """[n, d], the vectors of a batch's codes.

        Raises ConfigError where the model draws nothing, ValueError for codes it has not.
        """
        if self.code_embed is None:
            raise ConfigError(DRAWS_NOTHING)
        codes, count = batch.tokens[is_code(batch.modality)], self.code_embed.num_embeddings
        if int(codes.min()) < 0 or int(codes.max()) >= count:
            raise ValueError(f"codes from {int(codes.min())} to {int(codes.max())} are not within image_token_size ({count})")
        vectors = self.code_embed(codes)
        return vectors if self.code_places is None else vectors + self.code_places(code_cells(batch, context))

    def logits(self, hidden: Tensor) -> Tensor:
        """[N, d] -> fp32 [N, V]."""
        return linear(hidden, self.head_weight).float()

    @property
    def head_weight(self) -> Tensor:
        return self.embed.weight if self.config.tie_word_embeddings else self.head

    def code_logits(self, hidden: Tensor) -> Tensor:
        """[N, d] -> fp32 [N, codes], of what may come next where codes are drawn."""
        return linear(hidden, self.code_head_weight).float()

    @property
    def code_head_weight(self) -> Tensor:
        if self.code_head is None:
            raise ConfigError(DRAWS_NOTHING)
        return self.code_head

    def context(self, batch: Batch, cache: Cache | None, trace: Trace | None, selection: str) -> Context:
        """Notes the batch in the cache and works out what the layers share.

        A forward that is interrupted leaves the cache ahead of some layers: truncate it to its lengths from before.
        """
        if selection not in ("sparse", "dense"):
            raise ValueError(f"selection is {selection!r}; choose sparse or dense")
        device = batch.tokens.device
        if not batch.longest:
            raise ValueError("the batch has no tokens")
        past = [0] * batch.sequences if cache is None else _check_fit(cache.lengths, batch.sequences)
        inputs = {"tokens": batch.tokens, "documents": batch.documents, "modality": batch.modality}
        if cache is None:
            seen = {name: batch.pad(values) for name, values in inputs.items()}
            lengths = batch.lengths
        else:
            placed = {"positions": batch.positions.T} if self.config.has_media else {}
            cache.inputs.append(batch.lengths, **inputs, **placed)
            seen, lengths = {name: cache.inputs.read(name) for name in inputs}, cache.lengths
        history = History(**seen, lengths=torch.tensor(lengths, device=device))
        turns = {name: self.get_buffer(f"{name}_turns") for name in self.turns}
        positions = batch.positions if self.config.has_media else batch.positions[0]
        rotary = {name: tables(positions, values, self.rope_scale) for name, values in turns.items()}
        context = Context(batch, torch.tensor(past, device=device), history, rotary, selection == "sparse", trace)
        context.blocks = {ratio: new_blocks(batch, context, ratio, turns["compressed"]) for ratio in self.ratios}
        return context

    @torch.no_grad()
    def _catch_up(self, cache: Cache | None, selection: str) -> None:
        """After a deep cut, give layers that compress the tokens again whose rows they have forgotten."""
        inputs = None if cache is None else cache.inputs
        try:
            for piece in [] if cache is None else cache.rewind():
                self._run(self.context(piece, cache, None, selection), cache)
        except BaseException:
            cache.inputs = inputs
            raise

    def _run(self, context: Context, cache: Cache | None) -> Tensor:
        """All layers: streams [N, n, d]."""
        count = self.config.streams.hc_mult if self.config.streams else 1
        streams = self.embedded(context.batch, context)[:, None].expand(-1, count, -1)
        classes = self._classes(context.history) if self.config.memory else None
        for layer, states in zip(self.layers, cache.layers if cache else [None] * len(self.layers), strict=True):
            streams = layer(streams, classes, context, states)
        return streams

    def _classes(self, history: History) -> Tensor:
        """[S, K]: Engram's classes of the tokens. A code is no token, and nothing is looked up by it."""
        tokens = history.tokens
        if self.config.media_out:
            tokens = tokens.masked_fill(history.modality != Modality.TEXT, 0)
        return self.token_classes[tokens]

    def new_cache(self, batch_size: int = 1) -> Cache:
        """An empty memory for `batch_size` sequences, in the model's dtype and on its device."""
        weight, inputs = self.embed.weight, PLACED_FIELDS if self.config.has_media else INPUT_FIELDS
        return Cache([layer.fields() for layer in self.layers], batch_size, weight.dtype, weight.device, inputs)

    def routers(self) -> list[Router]:
        """The routers in the order in which layers trace their choices (multi-token prediction last)."""
        layers = [*self.layers, *(layer.layer for layer in self.mtp)]
        return [layer.ffn.router for layer in layers if isinstance(layer.ffn, Experts)]

    def indexer_parameters(self) -> list[tuple[str, nn.Parameter]]:
        return [(name, p) for name, p in self.named_parameters() if ".indexer." in name]

    @staticmethod
    def keep_fp32(name: str) -> bool:
        """Tensors that stay in fp32 in a bf16 model: routers, stream mixing, attention sinks, places in a block."""
        parts = name.split(".")
        return "router" in parts or parts[-1] in ("sinks", "ape") or any(p.endswith("_site") or p == "collapse" for p in parts)

    @torch.no_grad()
    def init_weights(self, seed: int = 0) -> "Transformer":
        """Normal weights; each tensor draws from a generator of its own name, so that other parts don't change it."""
        for module in self.modules():
            if isinstance(module, HyperConnections | Collapse | Patches):
                module.reset()
        for name, module in self.named_modules():
            if isinstance(module, Router):
                module.reset(_generator(seed, name))
        for name, parameter in self.named_parameters():
            if parameter.dim() >= 2 and name.rsplit(".", 1)[-1] not in SET_BY_MODULE:
                parameter.copy_(_normal(tuple(parameter.shape), seed, name) * self.config.initializer_range)
        return self


def _check_classes(classes: Tensor, config: ModelConfig) -> None:
    """A wrong map would hash silently to other rows."""
    if classes.shape != (config.vocab_size,):
        raise ConfigError(f"token_classes has {len(classes)} entries; give one for each of vocab_size ({config.vocab_size})")
    count = config.memory.engram_compressed_vocab_size or config.vocab_size
    if not classes.is_meta and int(classes.max()) >= count and config.memory.engram_compressed_vocab_size:
        raise ConfigError(f"token_classes reaches {int(classes.max())}, outside engram_compressed_vocab_size ({count})")


def _check_fit(lengths: list[int], sequences: int) -> list[int]:
    if len(lengths) != sequences:
        raise ValueError(f"the cache holds {len(lengths)} sequences, the batch {sequences}")
    return lengths


def _normal(shape: tuple[int, ...], seed: int, name: str) -> Tensor:
    """Standard normal numbers from (seed, name). numpy's, because torch's differ in the last bit from processor to processor."""
    return torch.from_numpy(_generator(seed, name).standard_normal(shape, dtype=np.float32))


def _generator(seed: int, name: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
