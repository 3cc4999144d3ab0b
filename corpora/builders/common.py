"""What every builder shares: the document, cleaning, the split rule, and small helpers for English sentences."""

import json
import re
import unicodedata
from dataclasses import dataclass

from fourfold.data.documents import unit

HELD_OUT_SHARE = 0.025  # of the documents of each source; with one whole novel held out besides, about 3-4 % of the bytes


@dataclass(frozen=True)
class Document:
    """One row of the corpus: either `text`, or `messages` (a list of {"role", "content"}) for a chat."""

    id: str
    source: str
    held_out: bool
    text: str | None = None
    messages: list[dict] | None = None


def pick(options: list, key: str):
    """One of `options`, chosen by `key`."""
    return options[int(unit(key) * len(options))]


def is_held_out(key: str) -> bool:
    """The split rule: a document's key (country, module, recipe, group of synsets) decides where all of it goes."""
    return unit("split:" + key) < HELD_OUT_SHARE


def clean(text: str) -> str:
    """NFC, Unix line ends, no control characters, no trailing spaces, at most one blank line in a row."""
    text = unicodedata.normalize("NFC", text).replace("\r\n", "\n").replace("\r", "\n").replace("\u00a0", " ")
    text = "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cf", "Co", "Cs"))
    text = re.sub(r"[ \t]+\n", "\n", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()


def prose(text: str) -> str:
    """`clean`, with runs of spaces collapsed (never for code)."""
    return re.sub(r"[ \t]+", " ", clean(text))


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def sentence(text: str) -> str:
    """With a capital at the start and a full stop at the end."""
    text = capital(text.strip().rstrip(";:,"))
    return text if text.endswith((".", "!", "?")) else text + "."


def article(noun: str) -> str:
    """ "a" or "an", by the first letter and the usual exceptions."""
    word = noun.lower()
    vowel = word[:1] in "aeiou" and not re.match(r"(uni[^nm]|use|usu|eu|one\b|ur[aeio]|ut[aeio]|ubi)", word)
    return "an" if vowel or re.match(r"(hour|honest|heir|honor)", word) else "a"


def listing(items: list[str], last: str = "and") -> str:
    """ "a, b and c"."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + f" {last} {items[-1]}"


def chat(id: str, held_out: bool, *turns: str, system: str | None = None) -> Document:
    """A chat document from turns that alternate between the user and the assistant."""
    head = [{"role": "system", "content": system}] if system else []
    roles = ("user", "assistant")
    return Document(id, "chat", held_out, messages=head + [{"role": roles[i % 2], "content": t} for i, t in enumerate(turns)])


def as_json(messages: list[dict]) -> str:
    return json.dumps(messages, ensure_ascii=False, separators=(",", ":"))
