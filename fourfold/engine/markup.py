"""How a chat format writes an answer, as a Lark grammar: text, a given form, and calls of tools in the format's own markup.

A mark that is one token of the vocabulary stands in the grammar by its id (<[17]>), any other as text. Text of an answer never
spells a mark that begins calls. After calls only the end of the turn may come: results of tools are not for the model to write.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, regex_to_lark

from fourfold.engine.schema import LISTS, as_lark, literal
from fourfold.errors import ConfigError
from fourfold.text.chats import chatml, own
from fourfold.text.chats.format import ChatFormat, marked, to_json
from fourfold.text.chats.jinja import Jinja
from fourfold.text.chats.tokens import CALL, CALL_END, CALLS, CALLS_END, DSML, SEPARATOR
from fourfold.text.chats.v3 import FENCE, FENCE_END, V3
from fourfold.text.chats.v31 import V31
from fourfold.text.chats.v32 import V32
from fourfold.text.tokenizer import Tokenizer

DRAWINGS = ("<|draw|>", "<|film|>", "<|frame|>")  # what text may hold where a model draws; engine/grammar.py says when
NOTES = {"title", "description", "default", "examples", "$comment", "deprecated"}  # keywords that rule nothing out
TRUE, FALSE = '" string="true">', '" string="false">'


@dataclass(frozen=True)
class Function:
    """A tool that may be called; lenient: what is not supported in the schema of its parameters is passed over.

    where: how errors begin that are about its parameters.
    """

    name: str
    parameters: dict[str, Any]
    lenient: bool = True
    where: str = "parameters"


class Markup(ABC):
    """One format's markup in one vocabulary: opening, then `begin` and a call, parted by `between`, then closing."""

    opening, begin, between, closing = "", "", "", ""

    def __init__(self, chat: ChatFormat, tokenizer: Tokenizer) -> None:
        self.media = [tokenizer.special(name) for name in DRAWINGS if chat.has_media and name in tokenizer.controls]
        self.tokens = {mark: tokenizer.special(mark) for mark in chat.marks if mark in tokenizer.controls}

    def grammar(
        self,
        functions: Sequence[Function],
        form: str | None = None,
        must_call: bool = False,
        many: bool = True,
        thoughts: str | None = None,
    ) -> str:
        """Lark for an answer: text or `form` (a part of a rule), or calls; `must_call` leaves these alone, `many` allows several.

        Without functions there are no calls. thoughts: the text that ends thoughts, where all begins with them and no token does.
        Raises ConfigError for parameters that the format cannot write.
        """
        first = self.spell(self.opening + self.begin)
        rules = list(self.calls(functions, many)) if functions else []
        if must_call:
            rules.append(f"answer: {first} calls")
        elif form is None:
            rules += self.text(bool(functions))
        else:
            rules += [f"answer: SPACE? form{f' | {first} calls' if functions else ''}", f"form: {form}", r"SPACE: /[ \n]{1,2}/"]
        if thoughts is not None:
            rules.append(f"thoughts[lazy]: /(?s:.*){_escaped(thoughts)}/")
        return "\n".join([*rules, f"start: {'' if thoughts is None else 'thoughts '}answer"])

    def calls(self, functions: Sequence[Function], many: bool) -> Iterator[str]:
        """Rules for what follows the beginning of the first call."""
        for i, function in enumerate(functions):
            yield f"call_{i}: {self.call(function)}"
        yield f"call: {' | '.join(f'call_{i}' for i in range(len(functions)))}"
        more = f" ({self.spell(self.between + self.begin)} call)*" if many else ""
        yield f"calls: call{more} {self.spell(self.closing)}"

    def text(self, calls: bool) -> Iterator[str]:
        """Rules for text, with calls behind it if there may be any."""
        first = (self.opening + self.begin).lstrip("\n")
        mark = next((part.text for part in marked(first, self.tokens) if part.control), None)
        yield f"TEXT: {_without(mark or first)}"
        media = " | ".join(f"<[{token}]>" for token in self.media)
        yield f"text: TEXT{f' (({media}) TEXT)*' if media else ''}"
        if not calls:
            yield "answer: text"
        elif mark is None:  # all of it is text, which is looked at until it is there
            yield f"head[lazy]: /(?s:.*){_escaped(first)}/"
            yield "answer: text | head calls"
        else:
            before, _, after = first.partition(mark)
            yield f"LEAD: {_without(mark)} & /(?s:.*){_escaped(before)}/"
            yield f"answer: text | {'LEAD' if before else 'text'} <[{self.tokens[mark]}]> {self.spell(after)} calls"

    def spell(self, text: str) -> str:
        """Text of the format's own as a part of a rule."""
        parts = [part for part in marked(text, self.tokens) if part.text]
        return " ".join(f"<[{self.tokens[part.text]}]>" if part.control else literal(part.text) for part in parts) or '""'

    @abstractmethod
    def call(self, function: Function) -> str:
        """A call behind its `begin`, as a part of a rule."""


class NoCalls(Markup):
    """Text alone (V1, V2)."""

    def call(self, function: Function) -> str:
        raise ConfigError("tools: this chat format has no way to call any; leave them out, or ask another model")


class JsonCalls(Markup):
    """Calls as JSON objects between tags: ours, ChatML's and Llama's."""

    def __init__(self, chat: ChatFormat, tokenizer: Tokenizer) -> None:
        super().__init__(chat, tokenizer)
        ours = isinstance(chat, own.Own)
        self.begin, self.end = (own.CALL, own.CALL_END) if ours else (chatml.CALL, chatml.CALL_END)
        self.between = self.space = "" if ours else "\n"

    def call(self, function: Function) -> str:
        head = f'{self.space}{{"name": {to_json(function.name)}, "arguments": '
        return f"{self.spell(head)} {_json(function)} {self.spell('}' + self.space + self.end)}"


class TokenCalls(Markup):
    """Calls between DeepSeek's tokens: fenced (V2.5, V3, R1) or not (V3.1)."""

    opening, begin, closing = CALLS, CALL, CALLS_END

    def __init__(self, chat: V3, tokenizer: Tokenizer) -> None:
        super().__init__(chat, tokenizer)
        self.between, self.fenced = chat.between, not isinstance(chat, V31)

    def call(self, function: Function) -> str:
        kind, fence, end = (f"function{SEPARATOR}", FENCE, FENCE_END) if self.fenced else ("", SEPARATOR, "")
        return f"{self.spell(f'{kind}{function.name}{fence}')} {_json(function)} {self.spell(end + CALL_END)}"


class DsmlCalls(Markup):
    """Calls as DSML tags, one for each parameter (V3.2, V4)."""

    begin = f'<{DSML}invoke name="'

    def __init__(self, chat: V32, tokenizer: Tokenizer) -> None:
        super().__init__(chat, tokenizer)
        self.opening, self.closing = f"{chat.dsml.openings[0]}\n", chat.dsml.close
        self.value_end = self.spell(f"{DSML}parameter>")
        self.terminals: list[str] = []

    def calls(self, functions: Sequence[Function], many: bool) -> Iterator[str]:
        self.terminals = ['KEY: /[^"<>\\n]+/']
        yield from super().calls(functions, many)
        yield from self.terminals

    def call(self, function: Function) -> str:
        schema = function.parameters
        properties = schema.get("properties") or {}
        if not function.lenient and (elsewhere := [key for key in ("$ref", *LISTS, "patternProperties") if key in schema]):
            said = "this chat format writes parameters one by one; say it inside properties"
            raise ConfigError(f"{function.where}.{elsewhere[0]}: {said}")
        required = schema.get("required") or []
        parts = []
        for key, value in properties.items():
            if '"' in key or "\n" in key:
                raise ConfigError(f"{function.where}.properties: the name {key!r} cannot be written in this format")
            part = self.parameter(literal(key), self.values(value, schema, function.lenient))
            parts.append(part if key in required else f"({part})?")
        if not properties and schema.get("additionalProperties") is not False:
            parts.append(f"({self.parameter('KEY', self.values({}, schema, function.lenient))})*")
        parts += [] if any(key in required for key in properties) else ['"\\n"?']  # an empty list of parameters is an empty line
        return " ".join([literal(f'{function.name}">'), *parts, self.spell(f"\n</{DSML}invoke>\n")])

    def parameter(self, key: str, values: list[str]) -> str:
        """One parameter; key and values are parts of rules."""
        opening = self.spell(f'\n<{DSML}parameter name="')
        return f"{opening} {key} ({' | '.join(values)})"

    def values(self, schema: Any, root: dict[str, Any], lenient: bool) -> list[str]:
        """Ways to write a value of this schema: text that is free or one of some stands as it is, all else as JSON."""
        rules = {key: value for key, value in schema.items() if key not in NOTES} if isinstance(schema, dict) else {}
        kinds = rules.get("type")
        if rules.keys() in ({"anyOf"}, {"oneOf"}):
            return [way for inner in next(iter(rules.values())) for way in self.values(inner, root, lenient)]
        if isinstance(kinds, list):
            return [way for kind in kinds for way in self.values(rules | {"type": kind}, root, lenient)]
        if rules.keys() <= {"type", "enum", "const"} and ("enum" in rules or "const" in rules):
            options = rules.get("enum", [rules.get("const")])
            texts = [option for option in options if isinstance(option, str)]
            others = {"enum": [option for option in options if not isinstance(option, str)]}
            as_text = [self.text_value(f"({' | '.join(literal(f'{text}</') for text in texts)})")] if texts else []
            return as_text + ([self.json_value(others, root, lenient)] if others["enum"] else [])
        if not rules:
            anything = {"type": ["object", "array", "number", "boolean", "null"]}
            return [self.free_value({}), self.json_value(anything, root, lenient)]
        if kinds == "string" and rules.keys() <= {"type", "pattern", "minLength", "maxLength"}:
            return [self.free_value(rules) or self.json_value(rules, root, lenient)]
        return [self.json_value(rules, root, lenient)]

    def free_value(self, rules: dict[str, Any]) -> str:
        """Text that keeps these rules; "" where that cannot be said.

        A pattern may match anywhere; where it is bound to one end in some of its options only, it is taken to be in all of them.
        The "</" behind the text is part of the terminal, since terminals take all that they can, and text may end with it too.
        """
        pattern, least, most = rules.get("pattern", ""), rules.get("minLength", 0), rules.get("maxLength", "")
        start, stop = "" if pattern.startswith("^") else "(?s:.*)", "" if pattern.endswith("$") else "(?s:.*)"
        inner = regex_to_lark(pattern.removeprefix("^").removesuffix("$"), "dw")
        conditions = [_without(DSML), rf"/(?s:.{{{least},{most}}})<\//", *([f"/{start}({inner}){stop}<\\//"] if pattern else [])]
        name = f"VALUE_{len(self.terminals)}"
        terminal = f"{name}: {' & '.join(conditions)}"
        if LLMatcher.validate_grammar(LLMatcher.grammar_from_lark(f"start: {name}\n{terminal}")):
            return ""
        self.terminals.append(terminal)
        return self.text_value(name)

    def text_value(self, text: str) -> str:
        """Text that ends with "</", a part of a rule."""
        return f"{literal(TRUE)} {text} {self.value_end}"

    def json_value(self, schema: dict[str, Any], root: dict[str, Any], lenient: bool) -> str:
        """JSON of a schema that may refer to the definitions of `root`."""
        definitions = {key: root[key] for key in ("$defs", "definitions") if key in root}
        return f'{literal(FALSE)} {as_lark(schema | definitions, lenient)} "</" {self.value_end}'


def markup_of(chat: ChatFormat, tokenizer: Tokenizer) -> Markup:
    """How this format writes calls in this vocabulary. Raises ConfigError for one that has none."""
    chat = chat.like if isinstance(chat, Jinja) else chat
    if isinstance(chat, own.Own | chatml.Turns):
        return JsonCalls(chat, tokenizer)
    if isinstance(chat, V32):
        return DsmlCalls(chat, tokenizer)
    if isinstance(chat, V3):
        return TokenCalls(chat, tokenizer)
    return NoCalls(chat, tokenizer)


def _json(function: Function) -> str:
    return as_lark(function.parameters, function.lenient)


def _escaped(text: str) -> str:
    """Text inside a regular expression between slashes."""
    return re.escape(text).replace("/", r"\/").replace("\n", r"\n")


def _without(text: str) -> str:
    """Any text that does not spell this one, as a terminal."""
    return rf"/(?s:.*)/ & ~/(?s:.*){_escaped(text)}(?s:.*)/" if text else "/(?s:.*)/"
