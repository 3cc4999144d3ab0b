"""Tools and response formats as constraints: whatever the model, its calls are those that were asked for, in every chat format."""

import json
from typing import Any

import jsonschema
import pytest
import torch

from fourfold.engine.constraint import Constraint
from fourfold.errors import ConfigError, DataError
from fourfold.server.tools import constraint_of
from fourfold.text.chats import FORMATS, ChatFormat
from fourfold.text.chats.jinja import Jinja
from fourfold.text.tokenizer import Tokenizer
from tests.engine.constrained import ramble
from tests.text.test_chats import BOS, CONTROLS, EOS, a_tokenizer

PLACE = {
    "type": "object",
    "properties": {
        "place": {"type": "string", "description": "Where"},
        "days": {"type": "integer", "minimum": 0, "maximum": 9},
        "unit": {"enum": ["C", "F", 1]},
        "part": {"$ref": "#/$defs/part"},
        "note": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "code": {"type": "string", "pattern": "^[A-D]{2}$"},
    },
    "required": ["place", "unit", "part", "note", "code"],
    "additionalProperties": False,
    "$defs": {
        "part": {"type": "object", "properties": {"x": {"type": "boolean"}}, "required": ["x"], "additionalProperties": False}
    },
}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": PLACE, "strict": True}}
MOON = {"type": "function", "function": {"name": "moon.phase-2", "description": "no parameters"}}
TOOLS = [WEATHER, MOON]
SCHEMAS = {"weather": PLACE, "moon.phase-2": {"type": "object"}}
JSON = {"type": "json_schema", "json_schema": {"name": "answer", "schema": PLACE, "strict": True}}
CALLING = ["fourfold", "v2.5", "v3", "r1", "v3.1", "v3.2", "v4", "chatml", "llama3", "jinja"]
MARKS = ("<|tool_call|>", "<|/tool_call|>", "｜DSML｜", "<｜tool▁calls▁begin｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>")


@pytest.fixture(params=CALLING)
def spoken(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> tuple[ChatFormat, Tokenizer]:
    """A chat format and a vocabulary for it: bytes and control tokens; ChatML's and Llama's tags are no tokens there."""
    if request.param == "jinja":
        return Jinja("{{ messages[0].content }}", CONTROLS, BOS, EOS, FORMATS["v3.1"]()), a_tokenizer()
    return FORMATS[request.param](), tokenizer if request.param == "fourfold" else a_tokenizer()


def answer(chat: ChatFormat, vocabulary: Tokenizer, seed: int, **asked: Any) -> Any:
    """What a model that knows nothing says, as a message."""
    constraint = constraint_of(chat, vocabulary, **asked)
    assert constraint is not None
    liked = tuple(mark for mark in MARKS if mark in vocabulary.controls)
    said = vocabulary.decode(ramble(constraint, vocabulary, seed, 900, liked), skip_special=False)
    return chat.parse(said, asked.get("opened", False))


def check_calls(message: Any) -> None:
    for call in message.tool_calls:
        assert call.complete
        jsonschema.validate(json.loads(call.arguments), SCHEMAS[call.name])


def test_required_calls_are_whole_and_valid(spoken: tuple[ChatFormat, Tokenizer]) -> None:
    message = answer(*spoken, 0, tools=TOOLS, tool_choice="required")
    assert message.tool_calls and message.content.strip() == ""
    check_calls(message)


def test_a_named_function_is_called_once(spoken: tuple[ChatFormat, Tokenizer]) -> None:
    message = answer(*spoken, 3, tools=TOOLS, tool_choice={"type": "function", "function": {"name": "weather"}})
    assert [call.name for call in message.tool_calls] == ["weather"]
    check_calls(message)


def test_auto_calls_if_it_likes_and_then_ends(spoken: tuple[ChatFormat, Tokenizer]) -> None:
    chat, vocabulary = spoken
    for seed in range(2):
        check_calls(answer(chat, vocabulary, seed, tools=TOOLS))
    said = [{"role": "assistant", "content": "So: <a>\n", "tool_calls": [_call("weather"), _call("moon.phase-2")]}]
    whole = _reply(chat, vocabulary, said[0])
    several, one = (constraint_of(chat, vocabulary, TOOLS, opened=chat.name == "r1", parallel=many) for many in (True, False))
    assert _taken(several, whole, vocabulary) == len(whole) and several.may_end
    assert several.mask(torch.zeros(vocabulary.vocab_size)).isfinite()[sorted(vocabulary.ends)].any()
    assert not several.mask(torch.zeros(vocabulary.vocab_size))[vocabulary.encode("a")].isfinite().any()
    assert _taken(one, whole, vocabulary) < len(whole)


def test_a_drawing_may_stand_in_text_beside_tools(tokenizer: Tokenizer) -> None:
    constraint = constraint_of(FORMATS["fourfold"](), tokenizer, TOOLS)
    marks = {name: tokenizer.special(name) for name in ("draw", "frame", "/draw", "image", "user")}
    said = [*tokenizer.encode("Look:"), marks["draw"], *tokenizer.encode("4x4"), marks["frame"], *tokenizer.encode("so")]
    assert _taken(constraint, said, tokenizer) == len(said)
    free = constraint.mask(torch.zeros(tokenizer.vocab_size)).isfinite()
    assert free[marks["draw"]] and free[tokenizer.special("tool_call")] and free[tokenizer.special("end")]
    assert not any(free[marks[name]] for name in ("/draw", "image", "user"))


def test_none_never_calls(spoken: tuple[ChatFormat, Tokenizer]) -> None:
    chat, vocabulary = spoken
    message = answer(chat, vocabulary, 1, tools=TOOLS, tool_choice="none")
    assert message.tool_calls == [] and message.content
    calling = _reply(chat, vocabulary, {"role": "assistant", "content": "", "tool_calls": [_call("weather")]})
    constraint = constraint_of(chat, vocabulary, TOOLS, "none", opened=chat.name == "r1")
    assert _taken(constraint, calling, vocabulary) < len(calling)


def test_a_form_is_kept_with_and_without_tools(spoken: tuple[ChatFormat, Tokenizer]) -> None:
    message = answer(*spoken, 5, response_format=JSON)
    jsonschema.validate(json.loads(message.content), PLACE)
    message = answer(*spoken, 6, response_format={"type": "json_object"}, tools=TOOLS)
    if message.tool_calls:
        check_calls(message)
    else:
        assert isinstance(json.loads(message.content), dict)


@pytest.mark.parametrize("name", ["fourfold", "r1", "v4", "chatml"])
def test_thoughts_come_first_and_are_free(name: str, tokenizer: Tokenizer) -> None:
    chat, vocabulary = FORMATS[name](), tokenizer if name == "fourfold" else a_tokenizer()
    constraint = constraint_of(chat, vocabulary, response_format=JSON, opened=True)
    for token in vocabulary.encode("I think {"):
        assert not constraint.may_end
        constraint.take(token)
    end = "<|/think|>" if name == "fourfold" else "</think>"
    constraint.take(vocabulary.special(end))
    said = vocabulary.decode(ramble(constraint, vocabulary, 0, 900), skip_special=False)
    jsonschema.validate(json.loads(said), PLACE)


def test_thoughts_that_end_with_text_come_first_too(tokenizer: Tokenizer) -> None:
    chat = FORMATS["chatml"]()  # <think> is no token of our vocabulary
    constraint = constraint_of(chat, tokenizer, response_format={"type": "json_object"}, opened=True)
    for token in tokenizer.encode("answer: { </thinks </think>"):
        assert not constraint.may_end and constraint.mask(torch.zeros(tokenizer.vocab_size))[token] == 0
        constraint.take(token)
    assert isinstance(json.loads(tokenizer.decode(ramble(constraint, tokenizer, 0))), dict)


def test_nothing_asked_is_no_constraint(spoken: tuple[ChatFormat, Tokenizer]) -> None:
    assert constraint_of(*spoken) is None
    assert constraint_of(*spoken, tool_choice="none", response_format={"type": "text"}) is None


def test_a_loose_schema_is_followed_as_far_as_it_can_be(spoken: tuple[ChatFormat, Tokenizer]) -> None:
    half = {
        "type": "object",
        "properties": {"a": {"type": "array", "uniqueItems": True, "items": {"type": "boolean"}, "maxItems": 2}},
    }
    half["required"], half["additionalProperties"] = ["a"], False
    broken = {"type": "object", "properties": {"b": {"type": "string", "pattern": "(?=c)"}}}
    tools = [{"type": "function", "function": {"name": name, "parameters": p}} for name, p in (("f", half), ("g", broken))]
    message = answer(*spoken, 2, tools=tools, tool_choice={"type": "function", "function": {"name": "f"}})
    assert all(isinstance(item, bool) for item in json.loads(message.tool_calls[0].arguments)["a"])
    message = answer(*spoken, 2, tools=tools, tool_choice={"type": "function", "function": {"name": "g"}})
    assert isinstance(json.loads(message.tool_calls[0].arguments), dict)


def _tool(**function: Any) -> list[dict[str, Any]]:
    return [WEATHER, {"type": "function", "function": function}]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (
            {"tools": _tool(name="f", strict=True, parameters={"type": "object", "not": {}})},
            "tools[1].function.parameters: not supported: not",
        ),
        ({"tools": _tool(name="f", parameters={"type": "string"})}, "tools[1].function.parameters: must be"),
        ({"tools": _tool(name="f g")}, "tools[1].function.name: 'f g' is none"),
        ({"tools": _tool(name="")}, "tools[1].function.name: '' is none"),
        ({"tools": [WEATHER] * 129}, "tools: 129 are too many"),
        ({"tools": TOOLS, "tool_choice": "maybe"}, "tool_choice: must be"),
        ({"tool_choice": "required"}, "tool_choice: asks for a call, and there are no tools"),
        ({"tools": TOOLS, "tool_choice": {"function": {"name": "sun"}}}, "tool_choice: names 'sun', which is none of the tools"),
        ({"response_format": {"type": "xml"}}, "response_format.type: must be"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema: must be"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"schema": {"properties": {"a": {"contains": {}}}}}}},
            "response_format.json_schema.schema.properties.a: not supported: contains",
        ),
    ],
)
def test_what_is_wrong_is_named(tokenizer: Tokenizer, asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        constraint_of(FORMATS["fourfold"](), tokenizer, **asked)
    assert str(error.value).startswith(said) and "\n" not in str(error.value)


def test_a_format_without_tools_says_so() -> None:
    with pytest.raises(ConfigError, match="^tools: chat format v1 has none"):
        constraint_of(FORMATS["v1"](), a_tokenizer(), TOOLS)
    with pytest.raises(DataError, match=r"^tools\[0\].function"):
        constraint_of(FORMATS["v1"](), a_tokenizer(), [{}])


def _call(name: str) -> dict[str, Any]:
    values = {"place": "Köln <b>", "days": 3, "unit": "C", "part": {"x": True}, "note": "a\nb", "code": "AB"}
    return {
        "type": "function",
        "function": {"name": name, "arguments": json.dumps(values if name == "weather" else {}, ensure_ascii=False)},
    }


def _reply(chat: ChatFormat, vocabulary: Tokenizer, message: dict[str, Any]) -> list[int]:
    """A reply as the format writes it, without the token that ends it."""
    ids: list[int] = []
    for part in chat.reply(message, chat.name == "r1"):
        control = part.control and part.text in vocabulary.controls
        ids += [vocabulary.special(part.text)] if control else vocabulary.encode(part.text)
    return ids[:-1] if ids[-1] in vocabulary.ends else ids


def _taken(constraint: Constraint | None, tokens: list[int], vocabulary: Tokenizer) -> int:
    """How many of these tokens the constraint lets through."""
    assert constraint is not None
    for place, token in enumerate(tokens):
        if constraint.mask(torch.zeros(vocabulary.vocab_size))[token] == -torch.inf:
            return place
        constraint.take(token)
    return len(tokens)
