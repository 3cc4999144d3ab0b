"""Pages for tests of the prefix store: small ones whose bytes follow from what they stand for, so that a wrong one is seen."""

import hashlib
from collections.abc import Hashable, Sequence

from fourfold.engine.store import Page, PrefixStore

MODEL = "a model"


def page_of(namespace: str, prefix: Sequence[Hashable], model: str = MODEL, bytes_: int = 60) -> Page:
    """The page that ends a prefix, in three pieces, one of them empty."""
    seed = hashlib.sha256(repr((model, namespace, list(prefix))).encode()).digest()
    whole = (seed * (bytes_ // len(seed) + 1))[:bytes_]
    return [whole[: bytes_ // 3], b"", whole[bytes_ // 3 :]]


def pages_of(store: PrefixStore, namespace: str, contents: Sequence[Hashable], start: int = 0, bytes_: int = 60) -> list[Page]:
    """Of all whole pages of `contents` from token `start` on."""
    stops = range(start + store.page, len(contents) + 1, store.page)
    return [page_of(namespace, contents[:stop], store.model_digest, bytes_) for stop in stops]


def keep(store: PrefixStore, namespace: str, contents: Sequence[Hashable], start: int = 0, bytes_: int = 60) -> None:
    store.keep(namespace, contents, start, pages_of(store, namespace, contents, start, bytes_))


def found(store: PrefixStore, namespace: str, contents: Sequence[Hashable], most: int | None = None, bytes_: int = 60) -> int:
    """Tokens of a hit, having checked that every page is the right one."""
    hit = store.fetch(namespace, contents, len(contents) if most is None else most)
    assert hit.tokens == len(hit.pages) * store.page
    assert hit.pages == pages_of(store, namespace, contents[: hit.tokens], bytes_=bytes_)
    return hit.tokens
