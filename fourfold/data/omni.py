"""Corpora of pictures, clips, speech and sounds: items whose media stay encoded files inside parquet.

Files are `<split>-<source>-00000.parquet` with the columns of `Item`; corpus.json is that of a corpus of documents, an item
counted as one document and the tokens being those of its text.
"""

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fourfold.data.corpus import Corpus, file_checksum, write_about
from fourfold.errors import DataError
from fourfold.text.tokenizer import Tokenizer

HOLDS = "items"  # what corpus.json says under `holds`
KINDS = ("image", "clip", "speech", "sound")
SHARD_BYTES = 36_000_000  # of media, which do not get smaller: a file stays under 40 MB
COLUMNS = {name: pa.string() for name in ("id", "source", "kind", "media", "text", "concept", "details")}
SCHEMA = pa.schema(list((COLUMNS | {"media": pa.binary()}).items()))


@dataclass(frozen=True)
class Item:
    """A picture, a clip or a sound with its words.

    media: an encoded file (PNG or WebP, animated WebP, Ogg Opus); text: a caption, a transcript or a label; concept: what
    the split goes by (a code point, a class, a sprite, a sentence, a recording); details: whatever else is known of it.
    """

    id: str
    source: str
    kind: str
    media: bytes
    text: str
    concept: str
    details: dict = field(default_factory=dict)


class OmniCorpus:
    """A corpus of items; `corpus` is the folder it lies in, with its files and their checksums."""

    def __init__(self, corpus: Corpus):
        if corpus.about.get("holds") != HOLDS:
            raise DataError(f"{corpus.folder}: holds documents, not pictures and sounds; name a corpus like tiny-omni")
        if not isinstance(corpus.about.get("sources"), dict):
            raise DataError(f"{corpus.folder / 'corpus.json'}: is damaged; build or copy the corpus again")
        self.corpus = corpus
        self.sources: dict[str, dict] = corpus.about["sources"]

    @classmethod
    def open(cls, name_or_folder: str | os.PathLike) -> "OmniCorpus":
        """By folder or by name, as `Corpus.open`; DataError when there is none or it holds documents."""
        return cls(Corpus.open(name_or_folder))

    def items(self, split: str, sources: Collection[str] | None = None) -> list[Item]:
        """The items of a split, of all sources or of those named, in file order; files are checked before they are read."""
        return list(self.iterate(split, sources))

    def iterate(self, split: str, sources: Collection[str] | None = None) -> Iterator[Item]:
        """`items` one at a time. A source that has nothing in this split gives nothing; an unknown one is a DataError."""
        if unknown := sorted(set(sources or ()) - set(self.sources)):
            raise DataError(f"{self.corpus.folder}: has no source {unknown[0]}; it has {', '.join(self.sources)}")
        for path in self.corpus.files(split):
            if sources is None or _source_of(path) in sources:
                self.corpus.verify(path)
                yield from _read(path)

    def checksum(self, split: str) -> str:
        """One sha256 over the files of a split."""
        return self.corpus.checksum(split)


def write_omni(
    folder: Path, name: str, splits: dict[str, list[Item]], tokenizer: Tokenizer, sources: dict[str, dict] | None = None
) -> dict:
    """Write parquet files and corpus.json into `folder` (make it with `atomic_folder`); returns what corpus.json says.

    Items are grouped by source and otherwise keep their order. `sources` adds what is known of each source (packages, licence).
    """
    counts: dict[str, dict] = {}
    described = {}
    for split, items in splits.items():
        files = []
        for source, group in groupby(sorted(items, key=lambda item: item.source), key=lambda item: item.source):
            members = list(group)
            counts.setdefault(source, {})[split] = _count(members, tokenizer)
            files += [_write(folder / f"{split}-{source}-{i:05d}.parquet", shard) for i, shard in enumerate(_shards(members))]
        totals = {key: sum(c[split][key] for c in counts.values() if split in c) for key in ("documents", "bytes", "tokens")}
        described[split] = {**totals, "files": files}
    return write_about(folder, {"name": name, "holds": HOLDS}, tokenizer, described, counts, sources)


def content_checksum(items: Collection[Item], media: bool = True) -> str:
    """sha256 over items, the same whatever wrote the parquet; without media also whatever encoded the pictures and sounds."""
    digest = hashlib.sha256()
    for item in items:
        row = vars(item) | {"media": hashlib.sha256(item.media).hexdigest() if media else ""}
        digest.update(json.dumps(row, ensure_ascii=True, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()


def _count(items: list[Item], tokenizer: Tokenizer) -> dict:
    return {
        "documents": len(items),
        "bytes": sum(len(item.media) + len(item.text.encode()) for item in items),
        "tokens": sum(map(len, tokenizer.encode_many([item.text for item in items]))),
        "content_sha256": content_checksum(items),
        "words_sha256": content_checksum(items, media=False),
    }


def _shards(items: list[Item]) -> Iterator[list[Item]]:
    shard: list[Item] = []
    size = 0
    for item in items:
        if shard and size + len(item.media) > SHARD_BYTES:
            yield shard
            shard, size = [], 0
        shard.append(item)
        size += len(item.media)
    yield shard


def _write(path: Path, items: list[Item]) -> dict:
    """Parquet whose bytes depend only on the items and the version of pyarrow."""
    rows = [vars(item) | {"details": json.dumps(item.details, ensure_ascii=False, sort_keys=True)} for item in items]
    table = pa.Table.from_pylist(rows, SCHEMA)
    pq.write_table(table, path, compression="zstd", compression_level=19, row_group_size=10_000, use_dictionary=["source", "kind"])
    return {"file": path.name, "sha256": file_checksum(path), "size": path.stat().st_size}


def _source_of(path: Path) -> str:
    return path.name.split("-", 1)[1].rsplit("-", 1)[0]


def _read(path: Path) -> Iterator[Item]:
    for batch in pq.ParquetFile(path).iter_batches(2000):
        for row in batch.to_pylist():
            yield Item(**row | {"details": json.loads(row["details"])})
