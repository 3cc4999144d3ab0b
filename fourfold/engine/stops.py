"""Stop strings: text is held back while it may be the beginning of one."""

from collections.abc import Iterable


class StopStrings:
    """Holds text back while it may be the beginning of a stop string, however tokens cut it."""

    def __init__(self, stops: Iterable[str]) -> None:
        self.stops, self._held = tuple(stops), ""

    def add(self, text: str) -> tuple[str, bool]:
        """The text that is free to go, and whether a stop string is complete (the one completed first counts)."""
        held = self._held + text
        found = [(held.find(stop) + len(stop), held.find(stop)) for stop in self.stops if stop in held]
        if found:
            self._held = ""
            return held[: min(found)[1]], True
        keep = max((_overlap(held, stop) for stop in self.stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep], False

    def flush(self) -> str:
        """The text held back, once nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` that begins `stop`, without completing it."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)
