"""Which of some labels a free answer gives: exactly one of them has to stand in its first line."""

from collections.abc import Iterable, Mapping

from fourfold.evals.answers import normalise, openings

YES, NO = "yes", "no"


def labelled(reply: str, labels: Mapping[str, Iterable[str]]) -> str | None:
    """The label whose name (or another name of it) is the only one to stand in the first line; None for none or several.

    Longer names are looked for first, and what they cover counts for nothing else: "T-shirt" does not name a shirt.
    """
    line, found = f" {normalise(next(openings(reply)))} ", set()
    names = {normalise(name): label for label, others in labels.items() for name in (label, *others)}
    for name in sorted(names, key=lambda name: (-len(name.split()), -len(name), name)):
        if name and f" {name} " in line:
            found.add(names[name])
            line = line.replace(f" {name} ", " | ")
    return found.pop() if len(found) == 1 else None


def affirmed(reply: str) -> bool | None:
    """Whether the first word of an answer is yes (True) or no (False); None when it is neither."""
    word = normalise(next(openings(reply))).partition(" ")[0]
    return {YES: True, NO: False}.get(word)
