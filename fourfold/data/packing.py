"""Documents as rows of tokens, without padding, in an order that is a pure function of (corpus, tokenizer, seed, step).

The documents of a split stand one after another, each as `<|bos|> ... <|eos|>`, and the stream is cut into rows. A row
may hold several documents, and a long document continues in the next row as a document of its own; `documents` says
which is which, so that none sees another. Only the tokens are stored: control tokens never come from text, so every
`<|bos|>` is a document's start.
"""

import hashlib
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch

from fourfold import paths
from fourfold.data.corpus import Corpus
from fourfold.data.documents import encode_documents
from fourfold.data.progress import progress
from fourfold.errors import DataError
from fourfold.files import atomic_file
from fourfold.text.tokenizer import Tokenizer

FORMAT = "1"  # part of the cache's key: raise it when the encoding of a document changes


class PackedTokens:
    """Rows of `length` + 1 tokens (inputs and their targets) of one split of a corpus."""

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
        self.tokens = tokenise(corpus, tokenizer, split, cache, every)  # [stream], memory-mapped
        self.bos, self.seed, self.width = tokenizer.special("bos"), seed, length + 1
        if (count := len(self.tokens)) < self.width:
            raise DataError(f"{corpus.folder}: {split} has {count} tokens, a row takes {self.width}; add text or shorten the rows")
        self.rows = -(-len(self.tokens) // self.width)
        self._order: tuple[int, np.ndarray] = (-1, np.empty(0))

    def batch(self, step: int, batch_size: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows `step * batch_size` and on of an endless run over shuffled epochs.

        Returns (tokens [B, T+1] int64, documents [B, T+1] int64); the numbers of documents differ between rows.
        """
        first = step * batch_size
        return self.take([self.row_at(first + i) for i in range(batch_size)])

    def take(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The rows of these numbers, as `batch` gives them."""
        at = np.asarray(rows, np.int64)[:, None] * self.width + np.arange(self.width)
        tokens = np.asarray(self.tokens[at % len(self.tokens)], np.int64)  # the last row is filled up from the stream's start
        documents = at[:, :1] + np.cumsum(tokens == self.bos, axis=1)
        return torch.from_numpy(tokens), torch.from_numpy(documents)

    def row_at(self, place: int) -> int:
        """The row at a place of the endless run: each epoch holds every row once, in its own order."""
        epoch, within = divmod(place, self.rows)
        if self._order[0] != epoch:
            self._order = (epoch, permutation(self.rows, self.seed, epoch))
        return int(self._order[1][within])


def permutation(count: int, seed: int, epoch: int) -> np.ndarray:
    """An order of `count` rows from (seed, epoch) alone: sorted by a hash, so no library's generator can change it."""
    key = int.from_bytes(hashlib.sha256(f"{seed}/{epoch}".encode()).digest()[:8], "big")
    with np.errstate(over="ignore"):
        x = (np.arange(count, dtype=np.uint64) + np.uint64(key)) * np.uint64(0x9E3779B97F4A7C15)  # splitmix64
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        x ^= x >> np.uint64(31)
    return np.argsort(x, kind="stable")


def tokenise(corpus: Corpus, tokenizer: Tokenizer, split: str, cache: Path | None = None, every: int = 1) -> np.ndarray:
    """The split as one memory-mapped array of tokens (uint16 when the vocabulary allows); of it, each `every`-th document.

    Kept in $FOURFOLD_HOME/cache under the checksums of corpus and tokenizer. Processes that start together may each
    write it; the file appears whole or not at all, and is the same whoever writes it.
    """
    key = hashlib.sha256("/".join((FORMAT, corpus.checksum(split), tokenizer.checksum, str(every))).encode()).hexdigest()[:16]
    path = (cache or paths.home() / "cache") / f"tokens-{key}.npy"
    if not path.is_file():
        _write(path, corpus, tokenizer, split, every)
    return np.load(path, mmap_mode="r")


def _write(path: Path, corpus: Corpus, tokenizer: Tokenizer, split: str, every: int) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32)
    described = corpus.about["splits"][split]
    count = 0
    chosen = islice(corpus.documents(split), 0, None, every)
    documents = progress(chosen, f"tokenising {corpus.name}", described["bytes"] // every, lambda d: d.size)
    with atomic_file(path) as partial, partial.open("wb") as file:
        _header(file, dtype, 0)
        for ids in encode_documents(documents, tokenizer):
            file.write(np.asarray(ids, dtype).tobytes())
            count += len(ids)
        end = file.tell()
        file.seek(0)
        _header(file, dtype, count)  # numpy leaves room for the length to grow
        if end != file.tell() + count * dtype.itemsize:
            raise DataError(f"{path}: the tokens could not be laid out; upgrade numpy")


def _header(file: BinaryIO, dtype: np.dtype, count: int) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
    np.lib.format.write_array_header_1_0(file, header)
