"""Stop strings: the text that goes out does not depend on how it was cut, and is what the whole text says."""

from hypothesis import given
from hypothesis import strategies as some

from fourfold.engine.stops import StopStrings

texts = some.text("ab<", max_size=14)
stops = some.lists(some.text("ab<", min_size=1, max_size=5), max_size=16)


def out(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    """All that goes out, and whether a stop string ended it."""
    holder, said = StopStrings(stops), ""
    for piece in pieces:
        text, stopped = holder.add(piece)
        said += text
        if stopped:
            return said, True
    return said + holder.flush(), False


def whole(text: str, stops: list[str]) -> tuple[str, bool]:
    """The definition: the stop string that is completed first ends the text before it, of several the longest."""
    for end in range(len(text) + 1):
        begun = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if begun:
            return text[: min(begun)], True
    return text, False


@given(texts, stops)
def test_every_split_gives_what_the_whole_text_does(text: str, stops: list[str]) -> None:
    expected = whole(text, stops)
    assert out(list(text), stops) == expected
    for first in range(len(text) + 1):
        for second in range(first, len(text) + 1):
            assert out([text[:first], text[first:second], text[second:]], stops) == expected


@given(texts, stops)
def test_only_what_may_become_a_stop_string_is_held_back(text: str, stops: list[str]) -> None:
    holder, said = StopStrings(stops), ""
    for i, sign in enumerate(text):
        free, stopped = holder.add(sign)
        said += free
        if stopped:
            return
        held = text[len(said) : i + 1]
        assert held == "" or any(stop.startswith(held) and stop != held for stop in stops)
