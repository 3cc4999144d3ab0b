"""/v1/messages through the official client, and the order of its events against a grammar."""

import base64
import json
from collections.abc import Callable

import anthropic
import pytest
import torch
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from fourfold.server.drawn import png
from fourfold.server.messages_output import Blocks
from fourfold.text.chats import CallArguments, CallBroken, CallFinished, CallStarted, Content, Reasoning
from tests.omni import picture
from tests.server.conftest import Live
from tests.server.grammars import check_message, stream

ASKED = [{"role": "user", "content": "the cat sat"}]
CALL = '<|tool_call|>{"name": "weather", "arguments": {"city": "Köln"}}<|/tool_call|>'
THOUGHT = "<|think|>Hm, a cat.<|/think|>\n\n"
WEATHER = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}
SAID = {
    "text": ("Hello, cat.", ["text"], "end_turn"),
    "nothing": ("", [], "end_turn"),
    "reasoning": (THOUGHT + "Hello.", ["thinking", "text"], "end_turn"),
    "all": (THOUGHT + "Look." + CALL + CALL, ["thinking", "text", "tool_use", "tool_use"], "tool_use"),
    "text behind a call": (CALL + "So.", ["tool_use", "text"], "tool_use"),
}


def client_of(live: Live) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=live.url, api_key="none", max_retries=0, timeout=60)


@pytest.mark.parametrize("said", SAID)
def test_events_come_in_order(saying: Callable[..., Live], said: str) -> None:
    """Every event of every stream against the grammar, cut off at some of its tokens too; whole and streamed are the same."""
    text, kinds, reason = SAID[said]
    live = saying(text)
    final = check_message(stream(live.http, "/v1/messages", model="tiny", messages=ASKED, max_tokens=300))
    assert [block["type"] for block in final["content"]] == kinds and final["stop_reason"] == reason
    whole = live.post("/v1/messages", model="tiny", messages=ASKED, max_tokens=300).json()
    for block in final["content"]:
        if block["type"] == "tool_use":
            block["input"] = json.loads(block["input"])
    assert [{**block, "id": ""} for block in whole["content"]] == [{**block, "id": ""} for block in final["content"]]
    assert whole["usage"] == final["usage"]
    for most in range(1, final["usage"]["output_tokens"], 6):
        cut = check_message(stream(live.http, "/v1/messages", model="tiny", messages=ASKED, max_tokens=most))
        assert cut["stop_reason"] == "max_tokens" and cut["usage"]["output_tokens"] == most


events = st.lists(
    st.one_of(
        st.builds(lambda t: [Reasoning(t)], st.text(min_size=1, max_size=3)),
        st.builds(lambda t: [Content(t)], st.text(min_size=1, max_size=3)),
        st.builds(
            lambda texts, end: [CallStarted(0, "f"), *(CallArguments(0, text) for text in texts), end(0)],
            st.lists(st.sampled_from(['{"a": 1', "}", '"']), max_size=3),
            st.sampled_from([CallFinished, CallBroken]),
        ),
    ),
    max_size=6,
)


@given(events)
def test_any_answer_is_told_in_order(lists: list[list]) -> None:
    heard, blocks = [event for events in lists for event in events], Blocks(torch.nn.Module())
    told = [{"type": "message_start", "message": {"content": [], "stop_reason": None}}, {"type": "ping"}]
    for event in heard:
        told += blocks.add(event)
    told += blocks.close()
    end = [{"type": "message_delta", "delta": {}, "usage": {}}, {"type": "message_stop"}]
    made = check_message(json.loads(json.dumps([*told, *end])))["content"]
    for kind, field, source in (("text", "text", Content), ("thinking", "thinking", Reasoning)):
        assert "".join(block[field] for block in made if block["type"] == kind) == "".join(
            event.text for event in heard if isinstance(event, source)
        )
    given = "".join(event.text for event in heard if isinstance(event, CallArguments))
    assert "".join(block["input"] for block in made if block["type"] == "tool_use") == given
    assert len(blocks.content) == len(made)
    assert all(isinstance(block["input"], dict) for block in blocks.content if block["type"] == "tool_use")


def test_the_client_understands_every_event(saying: Callable[..., Live]) -> None:
    live = saying(SAID["all"][0])
    kind = TypeAdapter(RawMessageStreamEvent)
    for told in stream(live.http, "/v1/messages", model="tiny", messages=ASKED, max_tokens=300):
        if told["type"] != "ping":
            kind.validate_python(told)
    Message.model_validate(live.post("/v1/messages", model="tiny", messages=ASKED, max_tokens=300).json())
    with client_of(live).messages.stream(model="tiny", messages=ASKED, max_tokens=300, tools=[WEATHER]) as streamed:
        final = streamed.get_final_message()
    assert [block.type for block in final.content] == SAID["all"][1] and final.stop_reason == "tool_use"
    assert final.content[0].thinking == "Hm, a cat." and final.content[0].signature
    assert final.content[2].input == {"city": "Köln"} and final.content[2].id.startswith("toolu_")
    assert final.usage.input_tokens == len(live.engine.asked[-1].prompt)


def test_what_is_asked_reaches_the_model(saying: Callable[..., Live]) -> None:
    live = saying(THOUGHT + "Look." + CALL)
    client = client_of(live)
    first = client.messages.create(
        model="tiny", messages=ASKED, max_tokens=300, tools=[WEATHER], thinking={"type": "enabled", "budget_tokens": 9}
    )
    call = first.content[2]
    answer = {
        "role": "user",
        "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "rain"}, {"type": "text", "text": "So?"}],
    }
    messages = [*ASKED, {"role": "assistant", "content": [block.model_dump() for block in first.content]}, answer]
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    client.messages.create(
        model="tiny",
        messages=messages,
        max_tokens=9,
        system=system,
        tools=[WEATHER],
        tool_choice={"type": "any"},
        extra_body={"top_k": 3},
    )
    tokenizer, request = live.serving.models.own()[0].tokenizer, live.engine.asked[-1]
    text = tokenizer.decode(request.prompt.tokens, skip_special=False)
    assert text.startswith("<|bos|><|system|>Be brief.")
    assert text.endswith(f"Look.{CALL}<|end|><|tool_result|>rain<|/tool_result|><|user|>So?<|end|><|assistant|>")
    assert (request.sampling.max_tokens, request.sampling.top_k) == (9, 3) and request.constraint is not None
    thoughts = tokenizer.decode(live.engine.asked[0].prompt.tokens, skip_special=False)
    assert thoughts.endswith("<|assistant|><|think|>")


def test_a_message_is_continued(saying: Callable[..., Live]) -> None:
    live = saying(" on the mat")
    client_of(live).messages.create(model="tiny", messages=[*ASKED, {"role": "assistant", "content": "the cat sat"}], max_tokens=9)
    tokens = live.engine.asked[0].prompt.tokens
    assert live.serving.models.own()[0].tokenizer.decode(tokens, skip_special=False).endswith("<|assistant|>the cat sat")


def test_what_stopped_it(saying: Callable[..., Live]) -> None:
    live = saying("the cat sat on the mat and the dog ran off")
    for stops, found in ((["dog", " mat"], " mat"), (["mat", "on the mat"], "mat"), (["bird"], None), (["off"], "off")):
        answer = client_of(live).messages.create(model="tiny", messages=ASKED, max_tokens=300, stop_sequences=stops)
        assert (answer.stop_reason, answer.stop_sequence) == (("stop_sequence", found) if found else ("end_turn", None))
        assert not found or found not in answer.content[0].text


def test_tokens_are_counted(saying: Callable[..., Live]) -> None:
    live = saying("ok")
    asked = {
        "model": "tiny",
        "messages": ASKED,
        "system": "Be brief.",
        "tools": [WEATHER],
        "thinking": {"type": "enabled", "budget_tokens": 9},
    }
    count = client_of(live).messages.count_tokens(**asked).input_tokens
    assert not live.engine.asked
    answer = client_of(live).messages.create(**asked, max_tokens=9)
    assert count == answer.usage.input_tokens == len(live.engine.asked[0].prompt)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"frequency": 1}, "frequency"),
        ({"max_tokens": None}, "max_tokens"),
        ({"messages": [{"role": "king", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_use"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "messages[0].content[0].tool_use_id"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "file"}}]}]},
            "messages[0].content[0].source.type",
        ),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
        ({"tools": [WEATHER, WEATHER]}, "tools[1].name"),
        ({"thinking": {"type": "sometimes"}}, "thinking.type"),
        ({"model": "none"}, "model"),
    ],
)
def test_errors_have_their_form(saying: Callable[..., Live], body: dict, field: str) -> None:
    live = saying()
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        if "max_tokens" in body and path.endswith("count_tokens"):
            continue
        given = {"model": "tiny", "messages": ASKED, **({} if path.endswith("count_tokens") else {"max_tokens": 9}), **body}
        answer = live.post(path, **given)
        error = answer.json()
        assert error["type"] == "error" and set(error) <= {"type", "error", "request_id"}
        kind = "not_found_error" if field == "model" else "invalid_request_error"
        assert error["error"]["type"] == kind and error["error"]["message"].startswith(f"{field}: "), error


def test_keys_and_failures(saying: Callable[..., Live]) -> None:
    def fail(request: object) -> str:
        raise RuntimeError("secret")

    live = saying(fail, api_keys=["sesame"])
    with pytest.raises(anthropic.AuthenticationError) as refused:
        client_of(live).messages.create(model="tiny", messages=ASKED, max_tokens=9)
    assert refused.value.body["error"]["type"] == "authentication_error"
    known = anthropic.Anthropic(base_url=live.url, api_key="sesame", max_retries=0)  # sent as x-api-key
    with pytest.raises(anthropic.InternalServerError) as broken:
        known.messages.create(model="tiny", messages=ASKED, max_tokens=9)
    assert broken.value.body["error"]["type"] == "api_error" and "secret" not in str(broken.value.body)
    with (
        pytest.raises(anthropic.APIStatusError) as broken,
        known.messages.stream(model="tiny", messages=ASKED, max_tokens=9) as streamed,
    ):
        streamed.until_done()
    assert "api_error" in str(broken.value.body)


def test_pictures_are_read_as_such(saying: Callable[..., Live]) -> None:
    data = base64.b64encode(png(picture(1))).decode()
    image = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    answer = saying().post("/v1/messages", model="tiny", messages=[{"role": "user", "content": [image]}], max_tokens=9)
    assert answer.status_code == 400 and "reads text only" in answer.json()["error"]["message"]
