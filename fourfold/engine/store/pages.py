"""Pages: how they are named, and how one lies in a file.

A page is what `Cache.snapshot` gives of some tokens: a piece of bytes for each state. Its key is a hash over the model, the
namespace and everything from the first token to its own last, as a chain over the pages before it. So equal keys mean equal states,
and prompts with a common beginning share its pages: keys are the nodes of a radix tree, and `Name.before` its edges.
"""

import hashlib
import struct
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

Page = list[bytes]

MAGIC = b"4foldpg1"  # a page file of another form begins otherwise
DIGEST = 20  # bytes of a key and of a checksum


class CorruptPageError(Exception):
    """A page file that is cut off, damaged, or another page's."""


@dataclass(frozen=True)
class Name:
    """Of a page, and of the one before it."""

    key: bytes
    before: "Name | None" = field(compare=False, repr=False)


def names(model_digest: str, namespace: str, contents: Sequence[Hashable], page: int) -> Iterator[Name]:
    """One name for each whole page of `contents`, lazily: a walk that ends early hashes no more than it needs.

    `contents` are tokens, or tuples of numbers and bytes (engine/sequence.py): their `repr` tells them apart, in every process.
    """
    key, name = digest([repr((model_digest, namespace)).encode()]), None
    for start in range(0, len(contents) - page + 1, page):
        key = digest([key, repr(contents[start : start + page]).encode()])
        name = Name(key, name)
        yield name


def size(page: Page) -> int:
    return sum(map(len, page))


def packed(name: Name, page: Page) -> list[bytes]:
    """The parts of a page file: magic, checksum of all that follows, key, number and lengths of the pieces, pieces."""
    head = name.key + struct.pack(f"<I{len(page)}Q", len(page), *map(len, page))
    return [MAGIC, digest([head, *page]), head, *page]


def unpacked(name: Name, raw: bytes) -> Page:
    """The page in a file that should hold `name`. Raises CorruptPageError."""
    body = memoryview(raw)[len(MAGIC) + DIGEST :]
    if not raw.startswith(MAGIC + digest([body]) + name.key):
        raise CorruptPageError
    (count,) = struct.unpack_from("<I", body, DIGEST)
    lengths = struct.unpack_from(f"<{count}Q", body, DIGEST + 4)
    page, at = [], DIGEST + 4 + 8 * count
    for length in lengths:
        page.append(bytes(body[at : at + length]))
        at += length
    return page


def digest(parts: Iterable[bytes | memoryview]) -> bytes:
    running = hashlib.blake2b(digest_size=DIGEST)
    for part in parts:
        running.update(part)
    return running.digest()
