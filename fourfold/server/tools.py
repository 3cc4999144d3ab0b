"""What a request's tools and response format mean for the answer: one constraint, or none.

tool_choice none: text without calls; auto: text, then calls if the model likes; required: one call or more; a function: one call
of it. Arguments follow the schema of the parameters, of a strict function all of it, else as far as it can be followed.
response_format asks for JSON, any object or one of a schema; with tools the answer is that, or calls. All of it begins after the
thoughts.
"""

from typing import Any

from fourfold.engine.constraint import Constraint
from fourfold.engine.markup import Function, markup_of
from fourfold.engine.schema import as_lark, check_schema
from fourfold.errors import ConfigError
from fourfold.text.chats.format import ChatFormat, check_tools
from fourfold.text.tokenizer import Tokenizer

MOST_TOOLS = 128
NAME_SIGNS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.")
THOUGHTS_END = {"<|think|>": "<|/think|>", "<think>": "</think>"}


def constraint_of(
    chat: ChatFormat,
    tokenizer: Tokenizer,
    tools: list[dict[str, Any]] | None = None,
    tool_choice: str | dict[str, Any] | None = None,
    response_format: dict[str, Any] | None = None,
    opened: bool = False,
    *,
    parallel: bool = True,
    thinking: bool = False,
    begun: str = "",
) -> Constraint | None:
    """The constraint of one answer, at its beginning; None where nothing is asked of it.

    tools, tool_choice, response_format and parallel (parallel_tool_calls) as in OpenAI's API; opened: the prompt ends in open
    thoughts; thinking: the model may open them itself; begun: what the prompt already holds of the answer. Raises ConfigError or
    DataError in one line that names the field.
    """
    functions, must_call = _callable(tools, tool_choice)
    form = _form(response_format)
    if form is None and not tools:
        return None
    if tools and not chat.has_tools:
        raise ConfigError(f"tools: chat format {chat.name} has none; leave them out, or ask another model")
    after, opening = thoughts_of(chat, tokenizer, opened, thinking)
    spelled = THOUGHTS_END[chat.think] if opened and after is None else None
    many = parallel and not isinstance(tool_choice, dict)
    grammar = markup_of(chat, tokenizer).grammar(functions, form, must_call, many, spelled)
    constraint = Constraint(tokenizer, grammar, after, opening, where="tools" if functions else "response_format")
    if begun and not opened:
        constraint.begin_with(begun, tokenizer)
    return constraint


def _callable(tools: list[dict[str, Any]] | None, choice: str | dict[str, Any] | None) -> tuple[list[Function], bool]:
    """The functions that may be called, and whether one has to be."""
    check_tools(tools)
    if len(tools or []) > MOST_TOOLS:
        raise ConfigError(f"tools: {len(tools or [])} are too many; give {MOST_TOOLS} at most")
    functions = [_function(tool["function"], f"tools[{i}].function") for i, tool in enumerate(tools or [])]
    if choice not in (None, "none", "auto", "required") and not isinstance(choice, dict):
        raise ConfigError('tool_choice: must be "none", "auto", "required", or an object that names a function')
    if choice in (None, "auto", "none"):
        return ([] if choice == "none" else functions), False
    if not functions:
        raise ConfigError("tool_choice: asks for a call, and there are no tools; give some")
    if not isinstance(choice, dict):
        return functions, True
    inner = choice.get("function")
    name = inner.get("name") if isinstance(inner, dict) else choice.get("name")
    named = [function for function in functions if function.name == name]
    if not named:
        known = ", ".join(function.name for function in functions)
        raise ConfigError(f"tool_choice: names {name!r}, which is none of the tools; choose one of {known}")
    return named, True


def _function(function: dict[str, Any], where: str) -> Function:
    name, strict, schema = function["name"], bool(function.get("strict")), function.get("parameters")
    if not 1 <= len(name) <= 64 or not NAME_SIGNS.issuperset(name):
        raise ConfigError(f"{where}.name: {name!r} is none; use 1 to 64 letters, digits, _, - and .")
    if schema is None:
        schema = {"type": "object", "properties": {}, "additionalProperties": not strict}
    if not isinstance(schema, dict) or schema.get("type", "object") != "object":
        raise ConfigError(f"{where}.parameters: must be a JSON schema of an object")
    schema = {"type": "object"} | schema
    try:
        check_schema(schema, f"{where}.parameters", lenient=not strict)
    except ConfigError:
        if strict:
            raise
        schema = {"type": "object"}  # what cannot be followed at all is left to the model
    return Function(name, schema, not strict, f"{where}.parameters")


def _form(response_format: dict[str, Any] | None) -> str | None:
    """What the answer has to be, as a part of a Lark rule; None for any text."""
    if response_format is None:
        return None
    kind = response_format.get("type") if isinstance(response_format, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return as_lark({"type": "object"})
    if kind != "json_schema":
        raise ConfigError("response_format.type: must be text, json_object or json_schema")
    named = response_format.get("json_schema")
    if not isinstance(named, dict) or not isinstance(named.get("schema"), dict):
        raise ConfigError("response_format.json_schema: must be an object with a schema")
    lenient = not named.get("strict", True)
    check_schema(named["schema"], "response_format.json_schema.schema", lenient)
    return as_lark(named["schema"], lenient)


def thoughts_of(chat: ChatFormat, tokenizer: Tokenizer, opened: bool, thinking: bool) -> tuple[int | None, int | None]:
    """The ids of the tokens that end thoughts, and may open them; None for those that do not matter, or are no tokens here."""
    end = THOUGHTS_END[chat.think]
    if not (opened or thinking) or not {chat.think, end} <= tokenizer.controls:
        return None, None
    return tokenizer.special(end), None if opened else tokenizer.special(chat.think)
