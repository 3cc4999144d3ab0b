"""Tool calls as V3.2 and V4 write them: tags that hold the token ｜DSML｜, one parameter for each argument.

    ⏎⏎<｜DSML｜tool_calls>⏎
    <｜DSML｜invoke name="weather">⏎
    <｜DSML｜parameter name="place" string="true">Köln</｜DSML｜parameter>⏎
    <｜DSML｜parameter name="days" string="false">[1, 2]</｜DSML｜parameter>⏎
    </｜DSML｜invoke>⏎
    </｜DSML｜tool_calls>

A parameter with string="true" is text as it stands, any other is JSON; text cannot hold its own closing tag. A name that comes
twice stays twice in the arguments. Source: the encoders that ship with DeepSeek-V3.2 (outer tag function_calls) and DeepSeek-V4
(tool_calls).
"""

import re
from collections.abc import Iterable, Iterator
from typing import Any

from fourfold.text.chat import Part
from fourfold.text.chats.format import arguments_object, marked, plain, quoted, to_json
from fourfold.text.chats.grammar import answer
from fourfold.text.chats.parser import Parser, Steps
from fourfold.text.chats.tokens import DSML, THINK, THOUGHT
from fourfold.text.settings import TextSettings

# What the model is told about tools when the folder does not bring the published wording. These words are ours.
TOOLS = """\
## Tools

Functions can be called. A reply that calls some ends with one block like this:

<{dsml_token}OUTER>
<{dsml_token}invoke name="$NAME">
<{dsml_token}parameter name="$PARAMETER" string="true|false">$VALUE</{dsml_token}parameter>
</{dsml_token}invoke>
</{dsml_token}OUTER>

Text stands as it is, with string="true"; every other value stands as JSON, with string="false".

The functions, as JSON Schema:

{tool_schemas}
"""
FIELDS = {"{dsml_token}": DSML, "{thinking_start_token}": THINK, "{thinking_end_token}": THOUGHT}
RESPONSE_FORMAT = "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n"


class Dsml:
    """Writing and reading with one outer tag. `wording` is the text about tools, with {tool_schemas} where they go."""

    def __init__(self, outer: str, wording: str | None = None) -> None:
        self.outer = outer
        self.wording = wording or TOOLS.replace("OUTER", outer)
        tag = f"<{DSML}{outer}>"
        self.openings = (f"\n\n{tag}", tag)
        self.close = f"</{DSML}{outer}>"

    def tools(self, functions: Iterable[dict[str, Any]]) -> Iterator[Part]:
        """The text about tools."""
        text = re.sub("|".join(map(re.escape, FIELDS)), lambda found: FIELDS[found[0]], self.wording)
        before, _, after = text.partition("{tool_schemas}")
        yield from marked(before, FIELDS.values())
        yield plain("\n".join(map(to_json, functions)))
        yield from marked(after, FIELDS.values())

    def calls(self, functions: list[dict[str, Any]]) -> Iterator[Part]:
        """A block of calls, or nothing."""
        if not functions:
            return
        yield from self._own(f"{self.openings[0]}\n")
        for function in functions:
            yield from self._own(f'<{DSML}invoke name="')
            yield plain(f'{function["name"]}">\n', own=True)
            for i, (key, value) in enumerate(arguments_object(function).items()):
                text = isinstance(value, str)
                said = value if text else quoted(to_json(value), [f"</{DSML}parameter>"])
                yield from self._own(("\n" if i else "") + f'<{DSML}parameter name="')
                yield plain(f'{key}" string="{str(text).lower()}">{said}', own=True)
                yield from self._own(f"</{DSML}parameter>")
            yield from self._own(f"\n</{DSML}invoke>\n")
        yield from self._own(self.close)

    def _own(self, text: str) -> Iterator[Part]:
        return marked(text, (DSML,), own=True)

    def answer(self, p: Parser) -> Steps[None]:
        """Content and blocks of calls."""
        yield from answer(p, self.openings, f'<{DSML}invoke name="', self.close, self._call)

    def _call(self, p: Parser, begin: str) -> Steps[str | None]:
        name, mark = yield from p.gather('">', "\n")
        if mark != '">':
            return begin + name + (mark or "")
        p.call(name)
        parameter, separator = f'<{DSML}parameter name="', "{"
        while (mark := (yield from p.expect(parameter, f"</{DSML}invoke>"))) == parameter:
            unread = yield from self._parameter(p, separator)
            if unread is not None:
                p.end_call(False)
                return parameter + unread if unread else ""
            separator = ", "
        if mark is not None:
            p.argue("}" if separator == ", " else "{}")
        else:
            p.drop_half(parameter, f"</{DSML}invoke>")
        p.end_call(mark is not None)
        return None if mark is not None else ""

    def _parameter(self, p: Parser, separator: str) -> Steps[str | None]:
        """None when it is whole, "" when the reply ends in it, else what could not be read."""
        true, false = '" string="true">', '" string="false">'
        key, mark = yield from p.gather(true, false, "\n")
        if mark not in (true, false):
            return key + mark if mark else ""
        p.argue(f"{separator}{to_json(key)}: ")
        p.argue('"' if mark == true else "")
        end = f"</{DSML}parameter>"
        if mark == true:
            whole = yield from p.until(end, to=lambda text: p.argue(to_json(text)[1:-1]))
        else:
            whole = yield from p.until_json_ends(end, to=p.argue)
        p.argue('"' if mark == true and whole else "")
        return None if whole else ""


def response_format(schema: dict[str, Any] | None) -> Iterator[Part]:
    """The section that asks for an answer of a given form."""
    if schema is not None:
        yield plain(f"\n\n{RESPONSE_FORMAT}{to_json(schema)}")


def published_tools(settings: TextSettings) -> str | None:
    """The wording in the folder's own encoder."""
    text = settings.constant("TOOLS_TEMPLATE", "TOOLS_SYSTEM_TEMPLATE")
    return text if text and "{tool_schemas}" in text else None
