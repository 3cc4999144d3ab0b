"""Replies read as they come: the same events however the text is cut, what was written comes back, and nothing is lost."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fourfold.engine.generate import Piece
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
from fourfold.text.tokenizer import Tokenizer

GRAMMARS = ["fourfold", "v1", "v3", "r1", "v3.1", "v4", "chatml"]  # v2, v2.5, v3.2 and llama3 read like one of these
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


def read(chat: ChatFormat, pieces: list[str], opened: bool) -> list[Event]:
    parser = chat.parser(opened)
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish()


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in zip(edges, edges[1:], strict=False)]


pieces = st.sampled_from([*TAGS, "\n", "\n\n", " ", "a", "é🙂", "<", "<｜", "<｜DSML｜", '"', "}"])
anything = st.lists(pieces, max_size=14).map("".join)
places = st.lists(st.integers(0, 400), max_size=12)


@pytest.mark.parametrize("name", GRAMMARS)
@given(text=anything, places=places, opened=st.booleans())
@settings(max_examples=100)
def test_any_cut_of_anything_gives_the_same_events(name: str, text: str, places: list[int], opened: bool) -> None:
    chat = FORMATS[name]()
    whole = merged(read(chat, [text], opened))
    assert merged(read(chat, cut(text, places), opened)) == whole
    assert merged(read(chat, list(text), opened)) == whole
    started = [event.index for event in whole if isinstance(event, CallStarted)]
    ended = [event.index for event in whole if isinstance(event, CallFinished | CallBroken)]
    assert started == ended == list(range(len(started)))  # every call begins once and ends once, in order
    told = "".join(event.name if isinstance(event, CallStarted) else getattr(event, "text", "") for event in whole)
    assert told.count("🙂") == text.count("🙂") or name in ("v3", "r1")  # these pass over the kind of a tool


plain = st.text(st.sampled_from('ab\n "\\{}[]<>|｜/é🙂') | st.characters(exclude_categories=["Cs"]), max_size=12)
tagged = st.lists(st.sampled_from(["<", "a", "\n", *TAGS]), max_size=4).map("".join)
leaves = plain | tagged | st.none() | st.booleans() | st.integers(-9, 9)
values = st.recursive(leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(plain, v, max_size=3), max_leaves=5)
arguments = st.dictionaries(st.text("ab_é .", min_size=1, max_size=4), values, max_size=3).map(json.dumps)
calls = st.lists(st.builds(ToolCall, st.text("ab_9é", min_size=1, max_size=5), arguments, st.just(True)), max_size=3)


def allowed(name: str, message: Message) -> bool:
    """Whether the grammar has a way to write this: no tag of its own in a text, but in JSON."""
    opens = {"fourfold": "<|tool_call|>", "v4": "<｜DSML｜tool_calls>", "chatml": "<tool_call>"}
    shut, begun = ("<|/think|>", "<|think|>") if name == "fourfold" else ("</think>", "<think>")
    texts = [value for call in message.tool_calls for value in json.loads(call.arguments).values() if isinstance(value, str)]
    if name == "v4" and any("</｜DSML｜parameter>" in text for text in texts):
        return False
    thinks = begun in message.content + message.reasoning_content and name not in ("v1", "v3")
    return opens.get(name, "<｜tool▁calls▁begin｜>") not in message.content and shut not in message.reasoning_content and not thinks


def as_objects(message: Message) -> tuple:
    return message.content, message.reasoning_content, [(c.name, json.loads(c.arguments), c.complete) for c in message.tool_calls]


@pytest.mark.parametrize("name", GRAMMARS)
@given(content=plain | tagged, reasoning=plain | tagged, calls=calls, places=places, opened=st.booleans())
def test_what_was_written_comes_back(name: str, content: str, reasoning: str, calls: list, places: list, opened: bool) -> None:
    chat = FORMATS[name]()
    opened = opened and name not in ("v1", "v3", "chatml")
    thinks = opened or name in ("r1", "chatml")  # these two open their thoughts themselves
    message = Message(content, reasoning if thinks else "", calls if chat.has_tools else [])
    if not allowed(name, message):
        return
    text = "".join(part.text for part in chat.reply(message.to_dict(), opened))
    assert text.endswith(chat.end)
    said = text.removesuffix(chat.end)
    assert as_objects(collect(read(chat, cut(said, places), opened))) == as_objects(message)
    assert as_objects(chat.parse(text, opened)) == as_objects(message)


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
    parser = FORMATS["v4"]().parser(opened=True)
    assert parser.feed("hm <") == [Reasoning("hm ")]
    assert parser.feed("/th") == [] and parser.feed("e") == [Reasoning("</the")]
    assert parser.feed("</think>A\n") == [Content("A")]
    assert parser.feed("\n<｜DSML｜") == [] and parser.feed("!") == [Content("\n\n<｜DSML｜!")]
    opening = '\n\n<｜DSML｜tool_calls>\n<｜DSML｜invoke name="f">\n<｜DSML｜parameter name="a" string="true">Kö'
    assert parser.feed(opening) == [CallStarted(0, "f"), CallArguments(0, '{"a": "Kö')]
    assert parser.feed('ln"') == [CallArguments(0, 'ln\\"')]
    assert parser.finish() == [CallBroken(0)]


ENDS = {"fourfold": "<|/tool_call|>", "v3": "<｜tool▁call▁end｜>", "v3.1": "<｜tool▁call▁end｜>", "chatml": "</tool_call>"}
ENDS["v4"] = "</｜DSML｜parameter>"


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("said", ["END", "a END", '\\\\END\\"END}END', "}END \\", "\\u0041END{END}"])
def test_an_end_mark_in_a_string_of_json_ends_nothing(name: str, said: str) -> None:
    said = json.dumps(said.replace("END", ENDS[name]), ensure_ascii=False)
    text = "Ok." + CALLS[name].replace("1", f"[{said}, {said}]", 1)
    called = [Content("Ok."), CallStarted(0, "f"), CallArguments(0, f'{{"a": [{said}, {said}]}}'), CallFinished(0)]
    for pieces in ([text], list(text)):
        assert merged(read(FORMATS[name](), pieces, False)) == called


@pytest.mark.parametrize("name", ENDS)
@pytest.mark.parametrize("then", ["", "\nsays\n"])
def test_an_end_mark_behind_a_string_that_never_ends_is_one(name: str, then: str) -> None:
    begun, end = CALLS[name].split("1")[0], CALLS[name][CALLS[name].index(ENDS[name]) :]
    for pieces in ([text := f'{begun}"x{end}{then}'], list(text)):
        message = collect(read(FORMATS[name](), pieces, False))
        assert message == Message(then, "", [ToolCall("f", message.tool_calls[0].arguments, True)])
        assert message.tool_calls[0].arguments.startswith('{"a": "x')


def test_what_is_no_call_is_known_by_the_end_of_its_line() -> None:
    parser = FORMATS["chatml"]().parser()
    assert parser.feed("<tool_call> is") == [Content("<tool_call>"), Content(" is")]
    assert parser.feed('\n<tool_call>{"name": "f"\n') == [Content('\n<tool_call>{"name": "f"\n')]
    parser = FORMATS["v3.1"]().parser()
    begun = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f\n"
    assert parser.feed(begun) == [Content(begun)]


@pytest.mark.parametrize("text", ['{"name":"f","arguments":{"a": 1}}', ' {"id": 1, "name": "f" , "arguments":{"a": 1} }\n\n'])
def test_json_calls_may_be_spaced_otherwise(text: str) -> None:
    (call,) = FORMATS["chatml"]().parse(f"<tool_call>{text}</tool_call>").tool_calls
    assert (call.name, json.loads(call.arguments), call.complete) == ("f", {"a": 1}, True)


@pytest.mark.parametrize("name", ["fourfold", "r1", "v3.1", "v4", "chatml"])
def test_thoughts_are_opened_by_the_prompt_or_by_the_model(name: str) -> None:
    chat = FORMATS[name]()
    begin, end = ("<|think|>", "<|/think|>") if name == "fourfold" else ("<think>", "</think>")
    for opened in (False, True):
        assert chat.parse(f"{begin}a{end}b", opened) == Message("b", "a")
    assert chat.parse(f"a{end}b", opened=True) == Message("b", "a")
    assert chat.parse(f"a{end}b") == Message(f"a{end}b")


def test_control_tokens_that_decoding_leaves_out_are_heard(tokenizer: Tokenizer) -> None:
    chat, (open_, shut) = FORMATS["fourfold"](), (tokenizer.special("think"), tokenizer.special("/think"))
    pieces = [Piece("", (open_,)), Piece("a", (40,)), Piece("b", (shut,)), Piece("c", (41,), "stop")]  # b was held back
    steps = list(chat.read(pieces, tokenizer))
    assert [piece for piece, _ in steps] == pieces
    assert [events for _, events in steps] == [[], [Reasoning("a")], [Reasoning("b")], [Content("c")]]
    cut_off = list(chat.read([Piece("a<|/th", (40,), "length")], tokenizer, opened=True))
    assert cut_off[0][1] == [Reasoning("a"), Reasoning("<|/th")]


def test_a_message_goes_back_into_a_prompt() -> None:
    message = FORMATS["v4"]().parse("hm</think>" + CALLS["v4"], opened=True)
    assert message.to_dict() == {
        "role": "assistant",
        "content": None,
        "reasoning_content": "hm",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}],
    }
    asked = [{"role": "user", "content": "?"}, message.to_dict()]
    text = FORMATS["v4"]().text(asked, thinking=True, add_generation_prompt=False)
    assert text.endswith("<｜Assistant｜><think>hm</think>" + CALLS["v4"] + FORMATS["v4"].end)
