"""Documents, and reading them from a user's own files or from a Hub data set."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fourfold.errors import DataError
from fourfold.text.chat import check, render
from fourfold.text.tokenizer import Tokenizer, sound

SUFFIXES = (".txt", ".md", ".py", ".jsonl")


@dataclass(frozen=True)
class Document:
    """One text, or one chat (then `messages` is set and `text` is what was said, a turn a line); always sound UTF-8."""

    id: str
    source: str
    text: str
    messages: list[dict] | None = None

    def __post_init__(self) -> None:
        for field in ("id", "source", "text"):
            object.__setattr__(self, field, sound(getattr(self, field)))
        if self.messages is not None:
            object.__setattr__(self, "messages", json.loads(sound(json.dumps(self.messages, ensure_ascii=False))))

    @classmethod
    def chat(cls, id: str, source: str, messages: list[dict]) -> "Document":
        return cls(id, source, "\n".join(m.get("content") or "" for m in messages), messages)

    @property
    def size(self) -> int:
        """Bytes of UTF-8."""
        return len(self.text.encode())


def encode_documents(documents: Iterable[Document], tokenizer: Tokenizer, at_once: int = 256) -> Iterator[list[int]]:
    """The ids of each document: `<|bos|>`, its text or rendered chat, `<|eos|>`."""
    bos, eos = tokenizer.special("bos"), tokenizer.special("eos")
    documents = iter(documents)
    while batch := list(islice(documents, at_once)):
        plain = iter(tokenizer.encode_many([d.text for d in batch if d.messages is None]))
        for document in batch:
            if document.messages is None:
                yield [bos, *next(plain), eos]
            else:
                yield [*render(document.messages, tokenizer, add_generation_prompt=False), eos]


def unit(key: str) -> float:
    """A number in [0, 1) that depends on `key` alone, on every machine."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def read_documents(places: Iterable[str], limit: int | None = None) -> Iterator[Document]:
    """Documents of files, folders (their .txt, .md, .py and .jsonl files) and `hub:NAME` data sets.

    Raises DataError, one line that names the file and the offset or line, for a file that is missing, empty, binary,
    not UTF-8, or JSON lines without `text` or `messages`.
    """
    for place in places:
        if place in ("", "hub:") or place.startswith("hub::"):
            raise DataError(f"--from: {place!r} names nothing; give a file, a folder or hub:NAME")
        if place.startswith("hub:"):
            yield from islice(_hub(place[4:]), limit)
        else:
            yield from islice(_files(Path(place)), limit)


def _files(place: Path) -> Iterator[Document]:
    if place.is_dir():
        files = sorted(f for f in place.rglob("*") if f.suffix in SUFFIXES and f.is_file() and not _hidden(f, place))
        if not files:
            raise DataError(f"{place}: holds no {', '.join(SUFFIXES)} files; name a folder that does")
    elif place.is_file():
        files = [place]
    else:
        raise DataError(f"{place}: no such file or folder; check the path after --from")
    for file in files:
        name = str(file.relative_to(place.parent).as_posix())
        try:
            yield from _json_lines(file, name) if file.suffix == ".jsonl" else _text_file(file, name)
        except OSError as error:
            raise DataError(f"{file}: cannot be read ({error.strerror}); check its permissions") from error


def _hidden(file: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in file.relative_to(folder).parts)


def _text_file(file: Path, name: str) -> Iterator[Document]:
    text = _decode(file, file.read_bytes(), 0).removeprefix("\ufeff").replace("\r\n", "\n").strip("\n")
    if not text.strip():
        raise DataError(f"{file}: is empty; remove it or put text in it")
    yield Document(name, name.split("/")[0], text)


def _decode(file: Path, data: bytes, offset: int) -> str:
    """UTF-8, or DataError with the offset of the first byte that shows it is not text."""
    if (zero := data.find(0)) >= 0:
        raise DataError(f"{file}: is binary (a zero byte at offset {offset + zero}); give text files only")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        at = offset + error.start
        raise DataError(
            f"{file}: is not UTF-8 (byte 0x{data[error.start]:02x} at offset {at}); convert it, as with iconv"
        ) from error


def _json_lines(file: Path, name: str) -> Iterator[Document]:
    offset, empty = 0, True
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            text = _decode(file, line, offset).removeprefix("\ufeff").strip()
            offset += len(line)
            if text:
                empty = False
                yield _from_json(text, f"{file}:{number}", f"{name}:{number}", name.split("/")[0])
    if empty:
        raise DataError(f"{file}: is empty; remove it or put text in it")


def _from_json(line: str, place: str, id: str, source: str) -> Document:
    try:
        return _from_row(json.loads(line), place, id, source)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: is not JSON ({error.msg} at column {error.colno}); write one object a line") from error
    except (ValueError, RecursionError) as error:  # Python's own limits: digits of a number, depth
        raise DataError(f"{place}: cannot be read as JSON ({str(error).split(';')[0]}); write one plain object a line") from error


def _from_row(row: object, place: str, id: str, source: str) -> Document:
    if isinstance(row, dict) and row.get("messages"):
        try:
            check(row["messages"])
        except DataError as error:
            raise DataError(f"{place}: {error}") from error
        return Document.chat(id, source, row["messages"])
    if not isinstance(row, dict) or not isinstance(row.get("text"), str) or not row["text"].strip():
        raise DataError(f'{place}: has no "text" (a string) or "messages" (a list); rename the field')
    return Document(id, source, row["text"])


def _hub(name: str) -> Iterator[Document]:
    """The train split of a Hub data set `NAME` or `NAME:CONFIG`, streamed."""
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise DataError(f"hub:{name}: needs the package `datasets`; pip install datasets") from error
    dataset, _, config = name.partition(":")
    number = -1
    try:
        for number, row in enumerate(load_dataset(dataset, config or None, split="train", streaming=True)):
            yield _from_row(row, f"hub:{name} row {number}", f"{name}:{number}", name)
    except DataError:
        raise
    except Exception as error:  # the Hub and its network have many errors of their own
        reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
        raise DataError(f"hub:{name}: cannot be read ({reason}); check the name and the network, or give files") from error
    if number < 0:
        raise DataError(f"hub:{name}: its train split is empty; choose another data set")
