"""Pages on disk, one file each, which any number of processes may share and anybody may delete at any time.

    FOLDER / first two letters of the key / KEY-BEFORE        the keys of the page and of the one before it, in hexadecimal

The folder itself is the index: a page is there if its file is, so nothing can disagree with it after a crash, a deletion, or the
doings of another process. A file is written aside and renamed. It is not flushed, since losing it in a power cut is harmless: every
read checks the checksum. The time of a file is when it was last used, either itself or a page that follows it.
"""

import os
import re
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from fourfold.engine.store.pages import DIGEST, CorruptPageError, Name, Page, packed, unpacked
from fourfold.errors import ConfigError

PAGE_FILE = re.compile(f"[0-9a-f]{{{2 * DIGEST}}}-[0-9a-f]{{{2 * DIGEST}}}")
PARTIAL = ".partial-"
NOTHING = bytes(DIGEST)  # in place of the key before the first page's
ABANDONED = 60.0  # seconds after which a file being written is taken for left behind
FULL = 7 / 8  # of the budget: what is left after pages were dropped
UNSEEN = 1 / 16  # of the budget: what a process writes before it looks again at what others wrote


class _File(NamedTuple):
    used: int  # nanoseconds
    key: str
    before: str
    bytes: int
    path: str


class Disk:
    """At most `budget` bytes of page files. With two processes on one folder that still holds; each further one may add 1/16.

    Only `write` changes what the others see of an object, and one thread at a time may call it.
    """

    def __init__(self, folder: Path, budget: int) -> None:
        self.folder, self.budget = folder, budget
        self.pages, self.bytes, self._unseen = 0, 0, 0  # as far as this process knows
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # prompts are nobody else's business
            self._make_room(0)
        except OSError as error:
            raise ConfigError(f"folder: {folder} cannot be used ({error.strerror}); name one you may write to") from None

    def path(self, name: Name) -> str:
        key, before = name.key.hex(), (name.before.key if name.before else NOTHING).hex()
        return os.path.join(self.folder, key[:2], f"{key}-{before}")

    def has(self, name: Name) -> bool:
        return os.path.exists(self.path(name))

    def read(self, name: Name) -> Page | None:
        """None where there is no such page. A bad file is removed; raises CorruptPageError."""
        path = self.path(name)
        try:
            with open(path, "rb") as file:
                return unpacked(name, file.read())
        except FileNotFoundError:
            return None
        except (OSError, CorruptPageError):
            with suppress(OSError):
                os.unlink(path)
            raise CorruptPageError from None

    def use(self, name: Name) -> None:
        """Note that a page, and with it all before it, was used now."""
        with suppress(OSError):
            os.utime(self.path(name))

    def write(self, name: Name, page: Page) -> tuple[bool, list[bytes]]:
        """Whether a page is there now, and the keys of those dropped for it.

        It is not when the one before it is missing, as it could not be found, nor when the disk fails.
        """
        parts, dropped = packed(name, page), list[bytes]()
        total = sum(map(len, parts))
        if self.has(name):
            return True, dropped
        if total > self.budget * FULL or not self._has_before(name):
            return False, dropped
        try:
            if self._unseen + total > self.budget * UNSEEN:
                dropped = self._make_room(total)
                if not self._has_before(name):
                    return False, dropped
            self._place(self.path(name), parts)
        except OSError:
            return False, dropped
        self.pages, self.bytes, self._unseen = self.pages + 1, self.bytes + total, self._unseen + total
        return True, dropped

    def _has_before(self, name: Name) -> bool:
        return name.before is None or self.has(name.before)

    def _place(self, path: str, parts: list[bytes]) -> None:
        """Write a file aside and rename it."""
        shelf = os.path.dirname(path)
        os.makedirs(shelf, exist_ok=True)
        handle, partial = tempfile.mkstemp(prefix=PARTIAL, dir=shelf)
        try:
            with open(handle, "wb") as file:
                file.writelines(parts)
            os.replace(partial, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(partial)
            raise

    def _make_room(self, wanted: int) -> list[bytes]:
        """Count what is there, and drop what was used longest ago if it and `wanted` are too much; returns the keys."""
        files, dropped = _ranked(list(self._files())), []
        total = sum(file.bytes for file in files)
        while files and total + wanted > self.budget * FULL:
            file = files.pop()
            total -= file.bytes
            with suppress(OSError):
                os.unlink(file.path)
            dropped.append(bytes.fromhex(file.key))
        self.pages, self.bytes, self._unseen = len(files), total, 0
        return dropped

    def _files(self) -> Iterator[_File]:
        """Every page file. What was left behind half written is removed on the way, what is not ours is left alone."""
        for shelf in _entries(str(self.folder)):
            for entry in _entries(shelf.path) if len(shelf.name) == 2 else ():
                with suppress(OSError):  # gone meanwhile
                    about = entry.stat()
                    if PAGE_FILE.fullmatch(entry.name):
                        key, before = entry.name.split("-")
                        yield _File(about.st_mtime_ns, key, before, about.st_size, entry.path)
                    elif entry.name.startswith(PARTIAL) and time.time() - about.st_mtime > ABANDONED:
                        os.unlink(entry.path)


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as found:
            return list(found)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _ranked(files: list[_File]) -> list[_File]:
    """The most worth keeping first: those used last, each after the pages before it, which were used with it."""
    known, ranked = {file.key: file for file in files}, dict[str, _File]()
    for file in sorted(files, reverse=True):
        chain, at = dict[str, _File](), known.get(file.key)
        while at is not None and at.key not in ranked and at.key not in chain:
            chain[at.key] = at
            at = known.get(at.before)
        ranked.update(reversed(chain.items()))
    return list(ranked.values())
