"""Held-out loss: nats per token and bits per byte over whole documents, for any model that predicts its own tokens.

A document longer than the window is read in windows that overlap; a token is scored once, in the first window that holds it, so
that it sees at least `overlap` tokens before it. Only tokens that stand for text of the document count: bits per byte then mean
the same whatever the tokenizer and the chat format are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fourfold.data.corpus import Corpus
from fourfold.data.documents import Document, encode_documents
from fourfold.data.progress import progress
from fourfold.errors import ConfigError
from fourfold.evals.statistics import bootstrap, subset
from fourfold.model.inputs import Batch
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer

# Windows of ids [T_i] int64 -> for each the nats [T_i - 1] of its ids from the second on.
Scorer = Callable[[list[Tensor]], list[Tensor]]
WINDOW, OVERLAP = 2048, 0.25  # tokens, and the share of a window that the next one repeats
AT_ONCE = 4096  # tokens in one forward
LOGITS = 512  # tokens whose logits exist at once


@dataclass(frozen=True)
class Text:
    """A document as a tokenizer cuts it. ids, sizes: [T] int64; sizes: bytes of the document that each id stands for.

    An id of size 0 (a control token, a word of a chat format) is context: it is not scored. Nor is the first id.
    """

    id: str
    source: str
    ids: Tensor
    sizes: Tensor


@dataclass(frozen=True)
class Scored:
    """What a model made of a document: `nats` over `tokens` that stand for `bytes`."""

    id: str
    source: str
    tokens: int
    bytes: int
    nats: float


def perplexity(
    model: Transformer,
    corpus: Corpus,
    split: str = "held_out",
    selection: str = "sparse",
    window: int = WINDOW,
    limit: int | None = None,
) -> dict:
    """`summary` of a split (or of `limit` of its documents), with what was read and how."""
    documents = subset(list(corpus.documents(split)), limit, lambda document: document.id)
    window = min(window, model.config.max_position_embeddings)
    texts = list(encode(documents, model.tokenizer))
    scored = score(texts, model_scorer(model, selection), window, label=f"perplexity, {selection}")
    about = {"corpus": corpus.name, "split": split, "selection": selection, "window": window}
    return about | summary(scored)


def encode(documents: Iterable[Document], tokenizer: Tokenizer) -> Iterator[Text]:
    """Documents from `<|bos|>` to `<|eos|>`, chats in the chat format."""
    documents = list(documents)
    sizes = token_sizes(tokenizer)
    for document, ids in zip(documents, encode_documents(documents, tokenizer), strict=True):
        tokens = torch.tensor(ids)
        yield Text(document.id, document.source, tokens, sizes[tokens])


def token_sizes(tokenizer: Tokenizer) -> Tensor:
    """[vocab_size] int64: bytes of text that each id stands for."""
    return torch.tensor([len(tokenizer.bytes_of(i)) for i in range(tokenizer.vocab_size)])


def score(
    texts: Sequence[Text], scorer: Scorer, window: int = WINDOW, at_once: int = AT_ONCE, label: str = "scoring"
) -> list[Scored]:
    """Score every document whole, windows of like length together; in the order of `texts`."""
    if window < 2:
        raise ConfigError(f"window: {window} leaves nothing to predict; choose 2 tokens or more")
    parts = [(i, *part) for i, text in enumerate(texts) for part in windows(len(text.ids), window, max(1, int(window * OVERLAP)))]
    parts.sort(key=lambda part: part[3] - part[1])
    sums = [[0, 0, 0.0] for _ in texts]
    for group in progress(_grouped(parts, at_once), label, len(parts), len):
        nats = scorer([texts[i].ids[start:stop] for i, start, _, stop in group])
        for (i, start, first, stop), own in zip(group, nats, strict=True):
            sizes, kept = texts[i].sizes[first:stop], texts[i].sizes[first:stop] > 0
            sums[i][0] += int(kept.sum())
            sums[i][1] += int(sizes.sum())
            sums[i][2] += own[first - start - 1 :][kept].double().sum().item()
    return [Scored(text.id, text.source, *own) for text, own in zip(texts, sums, strict=True)]


def windows(length: int, window: int, overlap: int) -> Iterator[tuple[int, int, int]]:
    """(start, first scored place, stop) of each window over `length` ids; every place but the first is scored once."""
    start, first = 0, 1
    while first < length:
        stop = min(start + window, length)
        yield start, first, stop
        start, first = stop - overlap, stop


def _grouped(parts: list[tuple[int, int, int, int]], at_once: int) -> Iterator[list[tuple[int, int, int, int]]]:
    """Neighbours whose windows, padded to the longest, stay within `at_once` tokens; parts come by rising length."""
    group: list[tuple[int, int, int, int]] = []
    for part in parts:
        if group and (len(group) + 1) * (part[3] - part[1]) > at_once:
            yield group
            group = []
        group.append(part)
    if group:
        yield group


def model_scorer(model: Transformer, selection: str = "sparse") -> Scorer:
    """One of our models, several windows in one ragged forward."""

    @torch.inference_mode()
    def scorer(parts: list[Tensor]) -> list[Tensor]:
        device = model.embed.weight.device
        batch = Batch.ragged([part[:-1].to(device) for part in parts])
        hidden, targets = model.trunk(batch, selection=selection), torch.cat([part[1:] for part in parts]).to(device)
        pairs = zip(hidden.split(LOGITS), targets.split(LOGITS), strict=True)
        nats = torch.cat([F.cross_entropy(model.logits(h), t, reduction="none") for h, t in pairs])
        return list(nats.cpu().split([len(part) - 1 for part in parts]))

    return scorer


def logits_scorer(logits: Callable[[Tensor], Tensor]) -> Scorer:
    """Any model as a function from ids [T] to the logits [T, V] of what follows each of them."""

    @torch.inference_mode()
    def scorer(parts: list[Tensor]) -> list[Tensor]:
        return [F.cross_entropy(logits(part[:-1]).float(), part[1:], reduction="none") for part in parts]

    return scorer


def summary(scored: Sequence[Scored]) -> dict:
    """`total`, and `sources` by name: counts, nats per token, bits per byte and its interval over documents."""
    sources = sorted({each.source for each in scored})
    return {"total": _figures(scored), "sources": {name: _figures([s for s in scored if s.source == name]) for name in sources}}


def _figures(scored: Sequence[Scored]) -> dict:
    tokens, size, nats = (sum(getattr(each, name) for each in scored) for name in ("tokens", "bytes", "nats"))
    return {
        "documents": len(scored),
        "tokens": tokens,
        "bytes": size,
        "nats_per_token": nats / max(tokens, 1),
        "bits_per_byte": nats / math.log(2) / max(size, 1),
        "interval": bootstrap([each.nats / math.log(2) for each in scored], [each.bytes for each in scored]),
    }
