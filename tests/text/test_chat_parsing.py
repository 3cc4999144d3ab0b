"""Replies read as they come: the same events however the text is cut, what was written comes back, and nothing is lost."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.text.chats import (
    FORMATS,
    CallArguments,
    CallBroken,
    CallFinished,
    CallStarted,
    ChatFormat,
    Content,
    Event,
    Message,
    Reasoning,
    ToolCall,
    collect,
)
from fourfold.text.chats.v3 import R1

FORMATS_WITH_TOOLS = [name for name, kind in FORMATS.items() if kind.has_tools]
THINKERS = ["fourfold", "r1", "v3.1", "v3.2", "v4", "chatml", "llama3"]
TAGS = """<think> </think> <|think|> <|/think|> <|tool_call|> <|/tool_call|> <tool_call> </tool_call> <｜tool▁calls▁begin｜>
    <｜tool▁calls▁end｜> <｜tool▁call▁begin｜> <｜tool▁call▁end｜> <｜tool▁sep｜> <｜DSML｜tool_calls> </｜DSML｜tool_calls>
    <｜DSML｜function_calls> </｜DSML｜function_calls> <｜DSML｜invoke </｜DSML｜invoke> <｜DSML｜parameter </｜DSML｜parameter>
    function json ``` "weather" name=" string="true"> string="false"> "> {"name": , "arguments": }""".split()


def merged(events: list[Event]) -> list[Event]:
    """Neighbouring pieces of one kind as one: what the events say, without where they were cut."""
    out: list[Event] = []
    for event in events:
        match out[-1] if out else None, event:
            case (Reasoning(a), Reasoning(b)) | (Content(a), Content(b)):
                out[-1] = type(event)(a + b)
            case CallArguments(i, a), CallArguments(j, b) if i == j:
                out[-1] = CallArguments(i, a + b)
            case _:
                out.append(event)
    return out


def read(chat: ChatFormat, pieces: list[str], thinking: bool) -> list[Event]:
    parser = chat.parser(thinking)
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


pieces = st.sampled_from([*TAGS, "\n", "\n\n", " ", "a", "é🙂", "<", "<｜", "<｜DSML｜", '"', "}"])
anything = st.lists(pieces, max_size=14).map("".join)
places = st.lists(st.integers(0, 400), max_size=12)


@pytest.mark.parametrize("name", FORMATS)
@given(text=anything, places=places, thinking=st.booleans())
@settings(max_examples=150)
def test_any_cut_of_anything_gives_the_same_events(name: str, text: str, places: list[int], thinking: bool) -> None:
    chat = FORMATS[name]()
    whole = merged(read(chat, [text], thinking))
    assert merged(read(chat, cut(text, places), thinking)) == whole
    assert merged(read(chat, list(text), thinking)) == whole
    started = [event.index for event in whole if isinstance(event, CallStarted)]
    ended = [event.index for event in whole if isinstance(event, CallFinished | CallBroken)]
    assert started == ended == list(range(len(started)))  # every call begins once and ends once, in order


plain = st.text(st.sampled_from('ab\n "\\{}[]<>|｜/é🙂') | st.characters(exclude_categories=["Cs"]), max_size=12)
tagged = st.lists(st.sampled_from(["<", "a", "\n", *TAGS]), max_size=4).map("".join)
leaves = plain | tagged | st.none() | st.booleans() | st.integers(-9, 9)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(plain, v, max_size=3), max_leaves=5)
arguments = st.dictionaries(st.text("ab_é .", min_size=1, max_size=4), values, max_size=3).map(json.dumps)
calls = st.lists(st.builds(ToolCall, st.text("ab_9é", min_size=1, max_size=5), arguments, st.just(True)), max_size=3)


def allowed(name: str, message: Message) -> bool:
    """Whether the grammar has a way to write this: no tag of its own in a text, but in JSON."""
    opens = {"v3.2": "<｜DSML｜function_calls>", "v4": "<｜DSML｜tool_calls>", "chatml": "<tool_call>", "llama3": "<tool_call>"}
    opening = opens.get(name, "<|tool_call|>" if name == "fourfold" else "<｜tool▁calls▁begin｜>")
    shut, begun = ("<|/think|>", "<|think|>") if name == "fourfold" else ("</think>", "<think>")
    texts = [value for call in message.tool_calls for value in json.loads(call.arguments).values() if isinstance(value, str)]
    if name in ("v3.2", "v4") and any("</｜DSML｜parameter>" in text for text in texts):
        return False
    if name == "fourfold" and any("<|/tool_call|>" in call.arguments for call in message.tool_calls):
        return False  # its template writes arguments as they are
    loose = name in ("chatml", "llama3", "fourfold", "r1") and begun in message.content + message.reasoning_content
    return opening not in message.content and shut not in message.reasoning_content and not loose


def as_objects(message: Message) -> tuple:
    return message.content, message.reasoning_content, [(c.name, json.loads(c.arguments), c.complete) for c in message.tool_calls]


@pytest.mark.parametrize("name", FORMATS)
@given(content=plain | tagged, reasoning=plain | tagged, calls=calls, places=places, thinking=st.booleans())
def test_what_was_written_comes_back(name: str, content: str, reasoning: str, calls: list, places: list, thinking: bool) -> None:
    chat = FORMATS[name]()
    thinks = name in THINKERS and (thinking or name == "r1")
    message = Message(content, reasoning if thinks else "", calls if chat.has_tools else [])
    if not allowed(name, message):
        return
    text = "".join(part.text for part in chat.reply(message.to_dict(), thinks))
    assert text.endswith(chat.end)
    said = text.removesuffix(chat.end)
    assert as_objects(collect(read(chat, cut(said, places), thinks))) == as_objects(message)
    assert as_objects(chat.parse(text, thinks)) == as_objects(message)


CALLS = {
    "fourfold": '<|tool_call|>{"name": "f", "arguments": {"a": 1}}<|/tool_call|>',
    "v3": "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n```json\n"
    '{"a": 1}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "v3.1": '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f<｜tool▁sep｜>{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>',
    "v4": '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="false">1</｜DSML｜parameter>\n'
    "</｜DSML｜invoke>\n</｜DSML｜tool_calls>",
    "chatml": '\n<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>',
}
CALLS |= {"v2.5": CALLS["v3"], "v3.2": CALLS["v4"].replace("tool_calls", "function_calls"), "llama3": CALLS["chatml"]}


@pytest.mark.parametrize("name", CALLS)
def test_events_of_a_call(name: str) -> None:
    called = [Content("Ok."), CallStarted(0, "f"), CallArguments(0, '{"a": 1}'), CallFinished(0)]
    assert merged(read(FORMATS[name](), list("Ok." + CALLS[name]), False)) == called


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_is_cut_off_loses_nothing(name: str) -> None:
    """Wherever the reply ends: before the name is read all is content, from there on the call is broken, or whole."""
    chat, text = FORMATS[name](), "Ok." + CALLS[name]
    for length in range(len(text)):
        message = chat.parse(text[:length])
        if not message.tool_calls:
            assert message.content == text[:length]
            continue
        (call,) = message.tool_calls
        assert (message.content, call.name) == ("Ok.", "f")
        assert '{"a": 1}'.startswith(call.arguments) or not call.complete
        if call.complete:
            assert call.arguments == '{"a": 1}'
    assert chat.parse(text).tool_calls == [ToolCall("f", '{"a": 1}', True)]


@pytest.mark.parametrize("name", CALLS)
def test_a_tag_that_begins_no_call_is_content(name: str) -> None:
    opening = CALLS[name].split("f")[0][:12].strip("\n")
    for text in (f"{opening} is a tag", CALLS[name].replace("f", "", 1)[:20] + "?", f"a{opening}"):
        message = FORMATS[name]().parse(text)
        assert message == Message(content=text)


def test_after_a_mistake_the_rest_is_content() -> None:
    whole, end = CALLS["v4"].split("\n</｜DSML｜tool_calls>")[0], "\n</｜DSML｜tool_calls>"
    message = FORMATS["v4"]().parse(f"{whole}\nbut{end}")
    assert message == Message(f"\nbut{end}", "", [ToolCall("f", '{"a": 1}', True)])
    message = FORMATS["v4"]().parse('<｜DSML｜tool_calls><｜DSML｜invoke name="f">x</｜DSML｜invoke>')
    assert message == Message("x</｜DSML｜invoke>", "", [ToolCall("f", "", False)])


def test_content_goes_on_between_blocks_of_calls() -> None:
    one = CALLS["v3.1"]
    message = FORMATS["v3.1"]().parse(f"a{one}b{one}c")
    assert message.content == "abc" and [call.name for call in message.tool_calls] == ["f", "f"]
    assert merged(read(FORMATS["v3.1"](), [f"a{one}b"], False))[-1] == Content("b")


def test_v3_without_its_fence() -> None:
    text = '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>f\n{"a": 1}<｜tool▁call▁end｜><｜tool▁calls▁end｜>'
    assert FORMATS["v3"]().parse(text).tool_calls == [ToolCall("f", '{"a": 1}', True)]


def test_text_goes_out_as_soon_as_it_cannot_be_a_tag() -> None:
    parser = FORMATS["v4"]().parser(thinking=True)
    assert parser.feed("hm <") == [Reasoning("hm ")]
    assert parser.feed("/th") == [] and parser.feed("e") == [Reasoning("</the")]
    assert parser.feed("</think>A\n") == [Content("A")]
    assert parser.feed("\n<｜DSML｜") == [] and parser.feed("!") == [Content("\n\n<｜DSML｜!")]
    opening = '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">Kö'
    assert parser.feed(opening) == [CallStarted(0, "f"), CallArguments(0, '{"a": '), CallArguments(0, '"'), CallArguments(0, "Kö")]
    assert parser.feed('ln"') == [CallArguments(0, 'ln\\"')]
    assert parser.finish() == [CallBroken(0)]


def test_r1_opens_its_thoughts_in_the_prompt_or_by_itself() -> None:
    for chat in (R1(), R1(opening="")):
        assert chat.parse("<think>a</think>b") == Message("b", "a")
    assert R1().parse("a</think>b") == Message("b", "a")
    assert R1(opening="").parse("a</think>b") == Message("a</think>b")


def test_a_message_goes_back_into_a_prompt() -> None:
    message = FORMATS["v4"]().parse("hm</think>" + CALLS["v4"], thinking=True)
    assert message.to_dict() == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    }
    asked = [{"role": "user", "content": "?"}, message.to_dict()]
    text = FORMATS["v4"]().text(asked, thinking=True, add_generation_prompt=False)
    assert text.endswith("<｜Assistant｜><think>hm</think>" + CALLS["v4"] + FORMATS["v4"].end)
