"""When a reply gives an answer: as its whole first line or sentence, or among the words of that line."""

import re
import unicodedata
from collections.abc import Iterable, Iterator

NUMBER = re.compile(r"-?\d+(?:,\d{3})*(?:\.\d+)?")


def normalise(text: str) -> str:
    """Lower case without accents, articles, signs and spare spaces; a minus before and a point within a number stay."""
    text = unicodedata.normalize("NFKD", text.casefold().replace("−", "-"))
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = re.sub(r"(?<=\d),(?=\d{3})", "", text)
    text = re.sub(r"(?<!\d)\.|\.(?!\d)|(?<=\w)-|-(?!\d)|[^\w\s.-]|_", " ", text)
    return " ".join(word for word in text.split() if word not in ("a", "an", "the"))


def openings(reply: str) -> Iterator[str]:
    """The first line of a reply, and each beginning of it that ends with a sentence ("St. Louis. It is large" has three)."""
    line = reply.strip().partition("\n")[0]
    yield line
    for end in re.finditer(r"[.!?;](?=\s)", line):
        yield line[: end.end()]


def answers(reply: str, accepted: Iterable[str]) -> bool:
    """Whether the first line or sentence of a reply is one of the accepted answers."""
    wanted = {normalise(answer) for answer in accepted} - {""}
    return any(normalise(opening) in wanted for opening in openings(reply))


def states(reply: str, accepted: Iterable[str], entity: str) -> bool:
    """Whether an accepted answer stands in the first line, outside the name of what was asked about.

    Answers come as sentences ("The capital of Sweden is Stockholm."), which echo the entity; an answer that is part of its name
    ("the River Niger" for Niger) must come once more.
    """
    line = f" {normalise(next(openings(reply)))} "
    if name := normalise(entity):
        line = line.replace(f" {name} ", " | ", 1)
    return any(f" {wanted} " in line for answer in accepted if (wanted := normalise(answer)))


def last_number(text: str) -> str | None:
    """The last number of a text, without thousands commas and needless zeros; None when there is none."""
    found = NUMBER.findall(text.replace("−", "-"))
    if not found:
        return None
    number = found[-1].replace(",", "")
    return number.rstrip("0").rstrip(".") if "." in number else number
