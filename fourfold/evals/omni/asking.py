"""How questions are worded, and which other thing is asked for."""

from collections.abc import Sequence

from fourfold.data.documents import unit
from fourfold.data.omni import Item
from fourfold.data.omni_documents import name, plain


def worded(options: Sequence[str], key: str) -> str:
    """One of the wordings, chosen by a key: the same on every machine."""
    return options[int(unit(f"wording:{key}") * len(options))]


def other_names(text: str) -> list[str]:
    """Ways of saying a label: it as a whole, what stands between its slashes, and each with or without a plural's s."""
    parts = dict.fromkeys([text, *text.split("/")])
    return [form for part in parts for form in (part, part[:-1] if part.endswith("s") else f"{part}s")]


def other_than(item: Item, items: Sequence[Item], key: str) -> Item | None:
    """An item whose name has no word in common with this one's, chosen by a key; None when there is none."""
    own = set(plain(name(item)).split())
    start = int(unit(f"other:{key}") * len(items))
    turned = (items[(start + step) % len(items)] for step in range(len(items)))
    return next((other for other in turned if not own & set(plain(name(other)).split())), None)


def hashed(items: Sequence[Item], key: str) -> list[Item]:
    """The items in an order that depends on their ids and a key alone."""
    return sorted(items, key=lambda item: unit(f"{key}:{item.id}"))
