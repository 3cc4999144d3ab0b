"""JSON Schema inside grammars: how it is written into one, and what is wrong with it, and where."""

import json
from collections.abc import Iterator
from typing import Any

from llguidance import LLMatcher

from fourfold.errors import ConfigError
from fourfold.text.tokenizer import sound

# White space between the parts of JSON: one space, or a new line with its indent. Endless ones are where weak models get lost.
SPACE = r"( |\n {0,24}|\n\t{0,8})"
DEPTH = 32  # how far into a schema the place of an error is looked for
LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
MAPS = ("properties", "patternProperties", "$defs", "definitions")
SINGLE = ("items", "additionalProperties")


def as_lark(schema: dict[str, Any], lenient: bool = False) -> str:
    """The schema as a part of a Lark rule; `lenient`: what is not supported in it is passed over."""
    return "%json " + json.dumps(schema | {"x-guidance": _options(lenient)})


def literal(text: str) -> str:
    """Text as a Lark string."""
    return json.dumps(sound(text), ensure_ascii=False)


def check_schema(schema: Any, where: str, lenient: bool = False) -> None:
    """Raise ConfigError in one line that names the place in the schema and the keyword that cannot be had."""
    if not isinstance(schema, dict):
        raise ConfigError(f"{where}: must be a JSON schema (an object)")
    if sound(text := json.dumps(schema, ensure_ascii=False)) != text:
        raise ConfigError(f"{where}: holds half a surrogate pair, which is no character; mend it")
    error = _error(schema, lenient)
    if error is None:
        return
    definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
    path, node = where, schema
    for _ in range(DEPTH):
        inside = (found for found in _children(node) if _error(found[1] | definitions, lenient) == error)
        place, node = next(inside, ("", {}))
        path += place
    raise ConfigError(f"{path}: {one_line(error)}; say it in another way, or leave it out")


def one_line(error: str) -> str:
    """What llguidance says, shorter."""
    text = " ".join(error.split()).split(" <state>")[0]
    for name in ("Unimplemented keys: ", "Unimplemented key: "):
        if text.startswith(name):
            return f"not supported: {', '.join(sorted(json.loads(text.removeprefix(name))))}"
    return "no answer can fulfil it" if text.startswith("NoExtension") else text[:300]


def _options(lenient: bool) -> dict[str, Any]:
    return {"whitespace_pattern": SPACE, "lenient": lenient}


def _error(schema: dict[str, Any], lenient: bool) -> str | None:
    """What is wrong with a schema, if anything."""
    return LLMatcher.validate_grammar(LLMatcher.grammar_from_json_schema(schema, overrides=_options(lenient))) or None


def _children(schema: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The schemas directly inside one, each with its place in it."""
    for key, value in sorted(schema.items(), key=lambda item: item[0] not in ("$defs", "definitions")):
        if key in MAPS and isinstance(value, dict):
            found = [(f".{key}.{name}", item) for name, item in value.items()]
        elif key in LISTS and isinstance(value, list):
            found = [(f".{key}[{i}]", item) for i, item in enumerate(value)]
        else:
            found = [(f".{key}", value)] if key in SINGLE else []
        yield from ((place, item) for place, item in found if isinstance(item, dict))
