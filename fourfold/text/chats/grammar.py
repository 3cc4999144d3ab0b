"""Parts that the grammars of several generations share.

One rule for what does not fit: a tag that is not followed by what belongs to it is content, as it stands, and so is all that
comes after the first mistake inside a block of calls. A call whose name was read is a call; if its end never comes, it is broken.
Only white space between tags, and half a tag where a reply was cut off after a call began, are left out.
"""

import json
from collections.abc import Callable

from fourfold.text.chats.parser import Parser, Steps

# Reads what follows the tag that begins a call (and is given it): None where the block may go on, else what could not be read.
Call = Callable[[Parser, str], Steps[str | None]]


def thoughts(p: Parser, opened: bool, begin: str = "<think>", end: str = "</think>") -> Steps[None]:
    """What comes before the answer: thoughts, if the prompt opened them or the model does so itself."""
    if (yield from p.expect(begin)) or opened:
        yield from p.until(end, to=p.think)


def answer(p: Parser, openings: tuple[str, ...], begin: str, close: str, call: Call) -> Steps[None]:
    """Content with blocks of calls in it: an opening tag, calls with nothing but white space between them, a closing tag."""
    while (opening := (yield from p.until(*openings, to=p.say))) is not None:
        yield from _block(p, opening, begin, close, call)


def _block(p: Parser, opening: str, begin: str, close: str, call: Call) -> Steps[None]:
    before = p.calls
    while (mark := (yield from p.expect(begin, close))) == begin:
        space, known = p.space, p.calls
        unread = yield from call(p, begin)
        if unread is not None:
            return p.say((opening if p.calls == before else "") + (space if p.calls == known else "") + unread)
    if p.calls > before:
        p.drop_half(begin, close)
    else:
        p.say(opening + (p.space + mark if mark else ""))


def json_call(p: Parser, begin: str, end: str) -> Steps[None]:
    """A call as one JSON object, {"name": ..., "arguments": ...}, between its tags; the arguments go out as they come.

    What is no call is known as such by the end of the line that its name should stand in.
    """
    if (yield from p.expect("{")) is None:
        return p.say(begin)
    read = f"{begin}{p.space}{{"
    header, mark = yield from p.gather('"arguments":', "\n", end)
    name = _name(header)
    if name is None or mark != '"arguments":':
        return p.say(read + header + (mark or ""))
    p.call(name)
    yield from p.skip(" ")
    mark = yield from p.until_json_ends(*(f"}}{space}{end}" for space in ("", " ", "\n", "\n\n", "\r\n")), end, to=p.argue)
    p.end_call(mark is not None)


def _name(header: str) -> str | None:
    try:
        name = json.loads(f"{{{header.rstrip().removesuffix(',')}}}").get("name")
    except (ValueError, RecursionError):
        return None
    return name if isinstance(name, str) else None
