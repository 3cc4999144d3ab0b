"""/v1/responses through the official client, and the order of its events against a grammar."""

import base64
import json
import threading
import time
from collections.abc import Callable, Iterator

import httpx
import openai
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from fourfold.engine.canvas import pixels_of
from fourfold.engine.request import Piece, Request
from fourfold.engine.stream import Stream
from fourfold.modality import Modality
from fourfold.model.transformer import Transformer
from fourfold.server.drawn import carried, png
from fourfold.server.errors import ApiError
from fourfold.server.models import Models, serve
from fourfold.server.responses_output import Output
from fourfold.server.settings import Settings
from fourfold.text.chats import (
    CallArguments,
    CallBroken,
    CallFinished,
    CallStarted,
    Content,
    DrawingBegun,
    DrawingCodes,
    DrawingFinished,
    Reasoning,
)
from tests.omni import PICTURE, picture
from tests.server.conftest import Live, Scripted, running
from tests.server.grammars import MESSAGES, RESPONSES, check_message, check_response, follows, stream

CALL = '<|tool_call|>{"name": "weather", "arguments": {"city": "Köln"}}<|/tool_call|>'
THOUGHT = "<|think|>Hm, a cat.<|/think|>\n\n"
WEATHER = {
    "type": "function",
    "name": "weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    "strict": False,
}
SAID = {
    "text": ("Hello, cat.", ["message"]),
    "nothing": ("", ["message"]),
    "reasoning": (THOUGHT + "Hello.", ["reasoning", "message"]),
    "thoughts alone": ("<|think|>Hm.<|/think|>", ["reasoning"]),
    "a tool": (CALL, ["function_call"]),
    "all": (THOUGHT + "Look." + CALL + CALL, ["reasoning", "message", "function_call", "function_call"]),
    "text behind a call": (CALL + "So.", ["function_call", "message"]),
    "a broken call": ("Ok<|tool_call|>nonsense", ["message"]),
}


def prompt_of(live: Live, place: int = -1) -> str:
    """What the model was asked, control tokens by name."""
    tokens = live.engine.asked[place].prompt.tokens
    return live.serving.models.own()[0].tokenizer.decode(tokens, skip_special=False)


def test_the_grammar_says_no() -> None:
    """It does not take orders that were seen elsewhere: parts that are not opened or closed, deltas of another item."""
    text = [
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
    ]
    whole = ["created", "in_progress", *text, "completed"]
    assert follows(RESPONSES, whole)
    for place in range(len(whole)):
        if whole[place] != "output_text.delta":
            assert not follows(RESPONSES, whole[:place] + whole[place + 1 :]), whole[place]
    assert not follows(RESPONSES, ["created", "in_progress", *text[:2], "function_call_arguments.delta", *text[3:], "completed"])
    assert follows(
        MESSAGES, ["message_start", "ping", "content_block_start", "content_block_stop", "message_delta", "message_stop"]
    )
    assert not follows(MESSAGES, ["message_start", "content_block_start", "message_delta", "message_stop"])


@pytest.mark.parametrize("said", SAID)
def test_events_come_in_order(saying: Callable[..., Live], said: str) -> None:
    """Every event of every stream against the grammar, cut off at some of its tokens too."""
    text, kinds = SAID[said]
    live = saying(text)
    final = check_response(stream(live.http, "/v1/responses", model="tiny", input="the cat"))
    assert final["status"] == "completed" and [item["type"] for item in final["output"]][: len(kinds)] == kinds
    whole = live.post("/v1/responses", model="tiny", input="the cat").json()
    for made in (final, whole):
        assert all(item.pop("id") and (item.pop("call_id", "x")) for item in made["output"])
    assert whole["output"] == final["output"]
    count = final["usage"]["output_tokens"]
    for most in range(1, count, 6):
        cut = check_response(stream(live.http, "/v1/responses", model="tiny", input="the cat", max_output_tokens=most))
        assert cut["status"] == "incomplete" and cut["incomplete_details"] == {"reason": "max_output_tokens"}


events = st.recursive(
    st.one_of(
        st.builds(lambda t: [Reasoning(t)], st.text(min_size=1, max_size=3)),
        st.builds(lambda t: [Content(t)], st.text(min_size=1, max_size=3)),
        st.builds(
            lambda texts, end: [CallStarted(0, "f"), *(CallArguments(0, text) for text in texts), end(0)],
            st.lists(st.text(min_size=1, max_size=3), max_size=3),
            st.sampled_from([CallFinished, CallBroken]),
        ),
        st.just([DrawingBegun((1, 1)), DrawingCodes((1,)), DrawingFinished(torch.zeros(1, 1).long())]),
    ),
    lambda inner: st.lists(inner, max_size=6).map(lambda lists: [event for events in lists for event in events]),
    max_leaves=8,
)


@given(events, st.sampled_from(["stop", "length", "tool_calls", "error"]), st.integers(0, 20))
def test_any_answer_is_told_in_order(heard: list, reason: str, cut: int) -> None:
    """Whatever the events of an answer, and wherever it breaks off."""
    output = Output({"output": [], "status": "in_progress"}, torch.nn.Module(), lambda chosen: [])
    told = list(output.begin())
    for event in heard[: None if reason == "stop" else cut]:
        told += output.add(event, [])
    told += output.fail(ApiError(500, "broken")) if reason == "error" else output.finish(reason, {})
    final = check_response(json.loads(json.dumps(told)))
    if reason == "stop":
        texts = ["".join(event.text for event in heard if isinstance(event, kind)) for kind in (Reasoning, Content, CallArguments)]
        parts = {"reasoning": ("summary", texts[0]), "message": ("content", texts[1])}
        for kind, (field, text) in parts.items():
            assert "".join(item[field][0]["text"] for item in final["output"] if item["type"] == kind) == text
        assert "".join(item["arguments"] for item in final["output"] if item["type"] == "function_call") == texts[2]


def test_the_client_understands_every_event(saying: Callable[..., Live]) -> None:
    live = saying(SAID["all"][0])
    kind = TypeAdapter(ResponseStreamEvent)
    for told in stream(live.http, "/v1/responses", model="tiny", input="the cat", include=["message.output_text.logprobs"]):
        kind.validate_python(told)  # strictly: the client itself does not look so closely
    Response.model_validate(live.post("/v1/responses", model="tiny", input="the cat").json())
    with live.client.responses.stream(model="tiny", input="the cat") as streamed:
        final = streamed.get_final_response()
    assert final.output_text == "Look." and final.usage.output_tokens_details.reasoning_tokens > 2
    assert [item.type for item in final.output] == SAID["all"][1]
    assert json.loads(final.output[2].arguments) == {"city": "Köln"} and final.output[2].call_id.startswith("call_")
    assert final.output[0].summary[0].text == "Hm, a cat."


def test_logprobs_belong_to_the_text(saying: Callable[..., Live]) -> None:
    live = saying(THOUGHT + "Hello, cat." + CALL)
    answer = live.client.responses.create(model="tiny", input="x", include=["message.output_text.logprobs"], top_logprobs=1)
    text = answer.output[1].content[0]
    assert "".join(each.token for each in text.logprobs).lstrip("\n") == text.text
    assert all(each.top_logprobs[0].logprob == each.logprob == -0.5 for each in text.logprobs)
    assert live.client.responses.create(model="tiny", input="x").output[1].content[0].logprobs == []


def test_what_is_asked_reaches_the_model(saying: Callable[..., Live]) -> None:
    live = saying("ok")
    items = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "How is it"}, {"type": "input_text", "text": " in Köln?"}]},
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "I ask."}]},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Wait.", "annotations": []}]},
        {"type": "function_call", "call_id": "call_1", "name": "weather", "arguments": '{"city": "Köln"}'},
        {"type": "function_call_output", "call_id": "call_1", "output": "rain"},
    ]
    answer = live.client.responses.create(
        model="tiny", instructions="You are kind.", input=items, reasoning={"effort": "low"}, temperature=0.5, max_output_tokens=9
    )
    assert prompt_of(live).replace("\n", "") == (
        "<|bos|><|system|>You are kind.<|end|><|system|>Be brief.<|end|><|user|>How is it in Köln?<|end|>"
        f"<|assistant|><|think|>I ask.<|/think|>Wait.{CALL}<|end|><|tool_result|>rain<|/tool_result|><|assistant|><|think|>"
    )
    sampling = live.engine.asked[0].sampling
    assert (sampling.temperature, sampling.max_tokens, answer.max_output_tokens) == (0.5, 9, 9)
    assert answer.instructions == "You are kind." and answer.reasoning.effort == "low"


def test_a_schema_is_asked_for(saying: Callable[..., Live]) -> None:
    live = saying('{"a": 1}')
    form = {
        "type": "json_schema",
        "name": "n",
        "strict": True,
        "schema": {"type": "object", "properties": {"a": {"type": "integer"}}},
    }
    answer = live.client.responses.create(model="tiny", input="x", text={"format": form})
    assert live.engine.asked[0].constraint is not None and answer.text.format.name == "n"
    live.client.responses.create(model="tiny", input="x", tools=[WEATHER], tool_choice={"type": "function", "name": "weather"})
    assert live.engine.asked[1].constraint is not None
    live.client.responses.create(model="tiny", input="x")
    assert live.engine.asked[2].constraint is None


def test_a_conversation_goes_on(saying: Callable[..., Live]) -> None:
    live = saying(lambda request: THOUGHT + "Look." + CALL if len(live.engine.asked) == 1 else "Rain.")
    first = live.client.responses.create(model="tiny", input="How is it?", instructions="Be brief.", tools=[WEATHER])
    result = {"type": "function_call_output", "call_id": first.output[2].call_id, "output": "rain"}
    second = live.client.responses.create(model="tiny", input=[result], previous_response_id=first.id)
    text = prompt_of(live)
    assert "Be brief." not in text, "instructions are those of one response"
    assert f"<|user|>How is it?<|end|><|assistant|><|think|>Hm, a cat.<|/think|>Look.{CALL}<|end|><|tool_result|>rain" in text
    third = live.client.responses.create(model="tiny", input="Sure?", previous_response_id=second.id)
    assert "<|assistant|>Rain.<|end|><|user|>Sure?<|end|>" in prompt_of(live) and third.previous_response_id == second.id
    assert live.client.responses.retrieve(first.id).model_dump() == first.model_dump()
    live.client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        live.client.responses.retrieve(first.id)
    live.client.responses.create(model="tiny", input="Sure?", previous_response_id=third.id)


def test_streamed_responses_are_kept_when_their_end_is_told(saying: Callable[..., Live]) -> None:
    live = saying("Hello.")
    final = check_response(stream(live.http, "/v1/responses", model="tiny", input="Hi."))
    assert live.http.get(f"/v1/responses/{final['id']}").json() == final


def test_what_is_not_kept_cannot_be_had(saying: Callable[..., Live]) -> None:
    live = saying("Hello.", api_keys=["mine", "yours"])
    mine, yours = ({"Authorization": f"Bearer {key}"} for key in ("mine", "yours"))
    kept, passing = (
        live.http.post("/v1/responses", json={"model": "tiny", "input": "x", "store": store}, headers=mine).json()
        for store in (True, False)
    )
    assert live.http.get(f"/v1/responses/{kept['id']}", headers=mine).status_code == 200
    for name, headers in ((kept["id"], yours), (passing["id"], mine)):
        answers = [
            live.http.get(f"/v1/responses/{name}", headers=headers),
            live.http.delete(f"/v1/responses/{name}", headers=headers),
        ]
        body = {"model": "tiny", "input": "x", "previous_response_id": name}
        answers.append(live.http.post("/v1/responses", json=body, headers=headers))
        assert [answer.status_code for answer in answers] == [404] * 3
        assert answers[2].json()["error"]["param"] == "previous_response_id"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"frequency": 1}, "frequency"),
        ({"reasoning": {"efort": "low"}}, "reasoning.efort"),
        ({"truncation": "auto"}, "truncation"),
        ({"background": True}, "background"),
        ({"conversation": "c"}, "conversation"),
        ({"input": [{"type": "web_search_call"}]}, "input[0].type"),
        ({"input": ["x"]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0].type"),
        ({"input": [{"role": "king", "content": "x"}]}, "input[0].role"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        ({"input": [{"type": "function_call", "name": "f"}]}, "input[0].arguments"),
        ({"input": [{"type": "reasoning", "summary": [1]}]}, "input[0].summary"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function"}]}, "tools[0].name"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_errors_name_the_field(saying: Callable[..., Live], body: dict, field: str) -> None:
    answer = saying().post("/v1/responses", **{"model": "tiny", "input": "x", **body})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == field and "\n" not in answer.json()["error"]["message"]


def test_a_failure_on_the_way_is_the_last_event(saying: Callable[..., Live]) -> None:
    def fail(request: object) -> str:
        raise RuntimeError("secret")

    live = saying(fail)
    final = check_response(stream(live.http, "/v1/responses", model="tiny", input="x"))
    assert final["status"] == "failed" and final["error"]["code"] == "server_error" and "secret" not in str(final)
    assert live.post("/v1/responses", model="tiny", input="x").status_code == 500


@pytest.mark.parametrize("streamed", [True, False])
def test_a_client_that_goes_ends_the_answer(saying: Callable[..., Live], streamed: bool) -> None:
    live = saying("the cat sat on the mat and the dog ran off")
    live.engine.steps = threading.Semaphore(3)
    with (
        pytest.raises(httpx.ReadTimeout),
        live.http.stream("POST", "/v1/responses", json={"model": "tiny", "input": "x", "stream": streamed}, timeout=0.5) as answer,
    ):
        answer.read()
    waits(lambda: not live.serving.live)
    live.engine.steps.release(1)
    waits(lambda: live.engine.cancelled == 1)


def waits(until: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not until():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_schemas_are_named_as_they_were_sent(saying: Callable[..., Live]) -> None:
    wrong = {"type": "object", "properties": {"a": {"type": "string", "pattern": "("}}}
    form = {"type": "json_schema", "name": "n", "strict": True, "schema": wrong}
    tool = {"type": "function", "name": "f", "strict": True, "parameters": wrong}
    live = saying()
    for body, field in (({"text": {"format": form}}, "text.format.schema"), ({"tools": [tool]}, "tools[0].parameters")):
        error = live.post("/v1/responses", model="tiny", input="x", **body).json()["error"]
        assert error["message"].startswith(field) and error["param"].startswith(field), error


class Painting(Scripted):
    """Says something, and draws."""

    def _pieces(self, request: Request, stream: Stream) -> Iterator[Piece]:
        codes = torch.arange(12).view(PICTURE)
        yield Piece("Look.")
        yield Piece("", drawing=DrawingBegun(PICTURE))
        for code in codes.flatten().tolist():
            yield Piece("", drawing=DrawingCodes((code,)))
        yield Piece("", drawing=DrawingFinished(codes, pixels_of(self.model, codes)))
        yield Piece("", (), "stop")


def test_what_is_drawn_is_an_item_and_goes_back_as_what_it_was(omni: Transformer) -> None:
    settings = Settings(drain_seconds=1)
    with running(Models([serve(omni, "omni", Painting(omni, ""))], settings), settings) as live:
        first = check_response(stream(live.http, "/v1/responses", model="omni", input="a cat"))
        text, drawn = first["output"]
        assert (drawn["type"], drawn["status"], drawn["output_format"]) == ("image_generation_call", "completed", "png")
        codes = carried(base64.b64decode(drawn["result"]), omni)
        assert torch.equal(codes, torch.arange(12).view(PICTURE))
        live.post("/v1/responses", model="omni", input="And?", previous_response_id=first["id"])
        items = [{"role": "user", "content": "a cat"}, text, drawn, {"role": "user", "content": "And?"}]
        live.post("/v1/responses", model="omni", input=items)
        kept, sent = (request.prompt for request in live.engine.asked[1:])
        assert torch.equal(kept.tokens, sent.tokens) and torch.equal(kept.modality, sent.modality)
        assert sent.tokens[sent.modality == Modality.DRAWN].tolist() == list(range(12))
        message = check_message(stream(live.http, "/v1/messages", model="omni", max_tokens=9, messages=[items[0]]))
        assert [block["type"] for block in message["content"]] == ["text", "image"]
        asked = [items[0], {"role": "assistant", "content": message["content"]}, items[3]]
        assert live.post("/v1/messages", model="omni", max_tokens=9, messages=asked).status_code == 200
        assert torch.equal(live.engine.asked[-1].prompt.tokens, sent.tokens)


def test_pictures_come_as_parts(saying: Callable[..., Live]) -> None:
    """This model reads none, and says so of the right message."""

    url = "data:image/png;base64," + base64.b64encode(png(picture(1))).decode()
    content = [{"type": "input_text", "text": "What is it?"}, {"type": "input_image", "image_url": url, "detail": "auto"}]
    answer = saying().post("/v1/responses", model="tiny", input=[{"role": "user", "content": content}])
    assert answer.status_code == 400 and "reads text only" in answer.json()["error"]["message"]
