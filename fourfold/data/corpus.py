"""A corpus on disk: zstd parquet files by split, and a `corpus.json` with sources, licences, counts and checksums.

Columns: `id`, `source`, and either `text` or `messages` (a chat, as JSON). A document is in one split as a whole.
"""

import hashlib
import json
import os
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from fourfold import paths
from fourfold.data.documents import Document, encode_documents, unit
from fourfold.data.progress import progress
from fourfold.errors import DataError
from fourfold.text.tokenizer import Tokenizer

SHARD_BYTES = 90_000_000  # of text; about a third of that compressed, so that a file stays under 40 MB
SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("text", pa.string()), ("messages", pa.string())])


class Corpus:
    """A folder with a corpus.json. `splits` maps a split to its files, `checksums` a file to its sha256."""

    def __init__(self, folder: Path, about: dict):
        self.folder, self.about = folder, about
        self.name: str = about["name"]
        self.splits: dict[str, list[str]] = {s: [f["file"] for f in d["files"]] for s, d in about["splits"].items()}
        self.checksums: dict[str, str] = {f["file"]: f["sha256"] for d in about["splits"].values() for f in d["files"]}

    @classmethod
    def open(cls, name_or_folder: str | os.PathLike) -> "Corpus":
        """By folder, or by name under $FOURFOLD_HOME/corpora or among the bundled ones; DataError otherwise."""
        folder = paths.find("corpora", name_or_folder)
        if folder is None:
            raise DataError(f"{name_or_folder}: no such corpus; `fourfold data` lists those there are")
        file = folder / "corpus.json"
        try:
            return cls(folder, json.loads(file.read_text("utf-8")))
        except FileNotFoundError as error:
            raise DataError(f"{folder}: is not a corpus (no corpus.json); make one with `fourfold data build`") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DataError(f"{file}: is damaged; build or copy the corpus again") from error

    def files(self, split: str) -> list[Path]:
        """The parquet files of a split, DataError for a split it does not have."""
        if split not in self.splits:
            raise DataError(f"{self.folder}: has no split {split}; it has {', '.join(self.splits)}")
        return [self.folder / name for name in self.splits[split]]

    def documents(self, split: str) -> Iterator[Document]:
        """The documents of a split, in file order; every file is checked against its sha256 before it is read."""
        if self.about.get("holds", "documents") != "documents":
            raise DataError(f"{self.folder}: holds {self.about['holds']}, not documents; name a corpus like tiny-text")
        for path in self.files(split):
            self.verify(path)
            for batch in pq.ParquetFile(path).iter_batches(1000):
                for row in batch.to_pylist():
                    yield _document(row)

    def verify(self, path: Path) -> None:
        """Raise DataError when a file is missing or is not what was written."""
        if not path.is_file():
            raise DataError(f"{path}: is missing; build or copy the corpus again")
        if file_checksum(path) != self.checksums[path.name]:
            raise DataError(f"{path}: is damaged (its sha256 is not the one in corpus.json); build or copy it again")

    def checksum(self, split: str) -> str:
        """One sha256 over the files of a split."""
        return hashlib.sha256("".join(self.checksums[p.name] for p in self.files(split)).encode()).hexdigest()

    @cached_property
    def tokenizer_folder(self) -> Path | None:
        """The tokenizer trained on this corpus, where it has one."""
        folder = self.folder / "tokenizer"
        return folder if folder.is_dir() else None


def write_corpus(
    folder: Path, name: str, splits: dict[str, list[Document]], tokenizer: Tokenizer, sources: dict | None = None
) -> dict:
    """Write parquet files and corpus.json into `folder` (make it with `atomic_folder`); returns what corpus.json says.

    `sources` adds what is known of each source (package, version, sha256, licence) to its counts.
    """
    counts: dict[str, dict] = {}
    described = {}
    for split, documents in splits.items():
        files = [_write_shard(folder / f"{split}-{i:05d}.parquet", shard) for i, shard in enumerate(_shards(documents))]
        encoded = zip(documents, encode_documents(documents, tokenizer), strict=True)
        for document, ids in progress(encoded, f"counting tokens of {split}", len(documents)):
            row = counts.setdefault(document.source, {}).setdefault(split, {"documents": 0, "bytes": 0, "tokens": 0})
            for key, value in (("documents", 1), ("bytes", document.size), ("tokens", len(ids))):
                row[key] += value
        totals = {k: sum(c[split][k] for c in counts.values() if split in c) for k in ("documents", "bytes", "tokens")}
        described[split] = {**totals, "content_sha256": _content_checksum(documents), "files": files}
    return write_about(folder, {"name": name}, tokenizer, described, counts, sources)


def write_about(
    folder: Path, first: dict, tokenizer: Tokenizer, splits: dict[str, dict], counts: dict[str, dict], sources: dict | None
) -> dict:
    """Write corpus.json, `first` at its head: what the splits hold, and of each source its counts beside what is known of it."""
    about = first | {
        "built": time.strftime("%Y-%m-%d", time.gmtime()),
        "tokenizer_sha256": tokenizer.checksum,
        "splits": splits,
        "sources": {s: {**(sources or {}).get(s, {}), "splits": counts[s]} for s in sorted(counts)},
    }
    (folder / "corpus.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return about


def split_documents(documents: Iterable[Document], share: float = 0.03) -> tuple[dict[str, list[Document]], int]:
    """Documents by the split their id falls in, and how many exact repeats were left out (so none is in both splits).

    With two documents or more, at least one is held out (that with the smallest hash) and at least one is not.
    """
    seen: set[bytes] = set()
    kept: list[Document] = []
    repeats = 0
    for document in documents:
        digest = hashlib.sha256(document.text.encode()).digest()
        repeats += digest in seen
        if digest not in seen:
            seen.add(digest)
            kept.append(document)
    if not kept:
        raise DataError("no documents to build a corpus from; name files with text in them")
    places = {d.id: unit("split:" + d.id) for d in kept}
    chosen = {id for id, place in places.items() if place < share}
    if len(kept) > 1:
        chosen = (chosen or {min(places, key=places.__getitem__)}) - ({max(places, key=places.__getitem__)})
    else:
        chosen = set()
    splits = {"train": [d for d in kept if d.id not in chosen], "held_out": [d for d in kept if d.id in chosen]}
    return {split: documents for split, documents in splits.items() if documents}, repeats


def file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _document(row: dict) -> Document:
    if row["messages"] is None:
        return Document(row["id"], row["source"], row["text"])
    return Document.chat(row["id"], row["source"], json.loads(row["messages"]))


def _row(document: Document) -> dict:
    messages = json.dumps(document.messages, ensure_ascii=False) if document.messages is not None else None
    text = document.text if messages is None else None
    return {"id": document.id, "source": document.source, "text": text, "messages": messages}


def _shards(documents: list[Document]) -> Iterator[list[Document]]:
    shard, size = [], 0
    for document in documents:
        shard.append(document)
        size += document.size
        if size >= SHARD_BYTES:
            yield shard
            shard, size = [], 0
    if shard:
        yield shard


def _write_shard(path: Path, documents: list[Document]) -> dict:
    """Parquet whose bytes depend only on the documents and the version of pyarrow."""
    table = pa.Table.from_pylist([_row(d) for d in documents], SCHEMA)
    pq.write_table(table, path, compression="zstd", compression_level=19, row_group_size=10_000, use_dictionary=["source"])
    return {"file": path.name, "sha256": file_checksum(path), "size": path.stat().st_size}


def _content_checksum(documents: list[Document]) -> str:
    """sha256 over ids and contents: the same whatever wrote the parquet."""
    digest = hashlib.sha256()
    for document in documents:
        digest.update(json.dumps(_row(document), ensure_ascii=True, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
