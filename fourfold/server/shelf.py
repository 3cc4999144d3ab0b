"""What is kept in memory for clients to come back to: bounded, the oldest goes first, and everybody sees only what is theirs."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

from fastapi import Request

from fourfold.server.errors import NotFound

T = TypeVar("T")


def owner_of(request: Request) -> str:
    """Whose things a request may see: those of its key."""
    return request.state.holder


class Shelf(Generic[T]):
    """Things by owner and id. most: how many; most_bytes: of all together, as `put` is told; `busy` says which may not go yet."""

    def __init__(self, noun: str, most: int, most_bytes: int, busy: Callable[[T], bool] = lambda thing: False) -> None:
        self.noun, self.most, self.most_bytes, self.busy = noun, most, most_bytes, busy
        self._things: OrderedDict[tuple[str, str], tuple[T, int]] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._things)

    def put(self, owner: str, name: str, thing: T, size: int = 0) -> bool:
        """Keep it, or keep it in the place of itself; False where only busy ones are left to make room, and it was not kept."""
        self._take((owner, name))
        while self._things and (len(self._things) >= self.most or self._bytes + size > self.most_bytes):
            oldest = next((key for key, (other, _) in self._things.items() if not self.busy(other)), None)
            if oldest is None:
                return False
            self._take(oldest)
        if size > self.most_bytes:
            return False
        self._things[owner, name] = thing, size
        self._bytes += size
        return True

    def get(self, owner: str, name: str, field: str | None = None) -> T:
        """Raises NotFound, which names the field that asked for it."""
        found = self._things.get((owner, name))
        if found is None:
            where = f"{field}: " if field else ""
            raise NotFound(f"{where}there is no {self.noun} {name[:100]}; it is deleted, too old, or was not kept", field)
        return found[0]

    def pop(self, owner: str, name: str) -> T:
        """Take it away. Raises NotFound."""
        thing = self.get(owner, name)
        self._take((owner, name))
        return thing

    def _take(self, key: tuple[str, str]) -> None:
        _, size = self._things.pop(key, (None, 0))
        self._bytes -= size
