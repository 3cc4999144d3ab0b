"""/v1/chat/completions through the official client."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from fourfold.server.models import Served
from tests.server.conftest import Live

CALLS = '<|tool_call|>{"name": "weather", "arguments": {"city": "Köln"}}<|/tool_call|>'
ASKED = [{"role": "user", "content": "the cat sat"}]
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def test_an_answer_is_whole(saying: Callable[..., Live]) -> None:
    live = saying("Hello, cat.")
    answer = live.client.chat.completions.create(model="tiny", messages=ASKED)
    assert answer.object == "chat.completion" and answer.model == "tiny" and answer.id.startswith("chatcmpl-")
    (choice,) = answer.choices
    assert (choice.index, choice.finish_reason, choice.message.role) == (0, "stop", "assistant")
    assert choice.message.content == "Hello, cat."
    usage = answer.usage
    assert usage.prompt_tokens > 3 and usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    extra = usage.model_extra
    assert extra["prompt_cache_hit_tokens"] + extra["prompt_cache_miss_tokens"] == usage.prompt_tokens


def test_a_stream_comes_in_order(saying: Callable[..., Live]) -> None:
    live = saying("<|think|>Hm, a cat.<|/think|>\n\nHello." + CALLS)
    with live.http.stream(
        "POST",
        "/v1/chat/completions",
        json={"model": "tiny", "messages": ASKED, "stream": True, "stream_options": {"include_usage": True}},
    ) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        lines = [line for line in answer.iter_lines() if line]
    assert lines[-1] == "data: [DONE]" and all(line.startswith("data: ") for line in lines)
    chunks = [json.loads(line[6:]) for line in lines[:-1]]
    *said, end, usage = chunks
    assert all(chunk["usage"] is None for chunk in (*said, end)) and usage["choices"] == [] and usage["usage"]["completion_tokens"]
    assert end["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "tool_calls"}
    deltas = [chunk["choices"][0]["delta"] for chunk in said]
    assert deltas[0] == {"role": "assistant", "content": ""}
    kinds = [next(iter(delta)) for delta in deltas[1:]]
    assert kinds == sorted(kinds, key=["reasoning_content", "content", "tool_calls"].index)
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Hm, a cat."
    assert "".join(delta.get("content", "") for delta in deltas) == "Hello."
    calls = [delta["tool_calls"][0] for delta in deltas if "tool_calls" in delta]
    assert calls[0]["id"].startswith("call_") and calls[0]["function"] == {"name": "weather", "arguments": ""}
    assert len(calls) > 2 and all(set(call) == {"index", "function"} for call in calls[1:])
    assert "".join(call["function"]["arguments"] for call in calls) == '{"city": "Köln"}'
    thought = usage["usage"]["completion_tokens_details"]["reasoning_tokens"]
    assert 2 < thought < usage["usage"]["completion_tokens"]


def test_whole_and_streamed_say_the_same(saying: Callable[..., Live]) -> None:
    live = saying("<|think|>Why?<|/think|>\nBecause." + CALLS + CALLS)
    whole = live.client.chat.completions.create(model="tiny", messages=ASKED, tools=[WEATHER]).choices[0].message
    with live.client.chat.completions.stream(model="tiny", messages=ASKED, tools=[WEATHER]) as stream:
        streamed = stream.get_final_completion().choices[0].message
    assert whole.content == streamed.content == "Because."
    assert whole.model_extra["reasoning_content"] == streamed.model_extra["reasoning_content"] == "Why?"
    said = [[(call.function.name, json.loads(call.function.arguments)) for call in m.tool_calls] for m in (whole, streamed)]
    assert said[0] == said[1] == [("weather", {"city": "Köln"})] * 2
    assert len({call.id for call in (*whole.tool_calls, *streamed.tool_calls)}) == 4


@pytest.mark.parametrize(
    ("asked", "thinks"),
    [
        ({}, False),
        ({"thinking": {"type": "enabled"}}, True),
        ({"thinking": {"type": "disabled"}, "reasoning_effort": "high"}, False),
        ({"reasoning_effort": "low"}, True),
        ({"reasoning_effort": "none"}, False),
        ({"chat_template_kwargs": {"enable_thinking": True}}, True),
        ({"model": "tiny-reasoner"}, True),
        ({"model": "tiny-chat"}, False),
        ({"model": "wise"}, True),
    ],
)
def test_who_thinks(saying: Callable[..., Live], asked: dict, thinks: bool) -> None:
    live = saying("ok", aliases={"wise": {"model": "tiny", "thinking": True}})
    assert live.post("/v1/chat/completions", **{"model": "tiny", "messages": ASKED, **asked}).status_code == 200
    think = live.serving.models.own()[0].tokenizer.special("think")
    assert (think in live.engine.asked[-1].prompt.tokens.tolist()) == thinks


def test_a_name_that_never_thinks_says_so(saying: Callable[..., Live]) -> None:
    answer = saying().post("/v1/chat/completions", model="tiny-chat", messages=ASKED, thinking={"type": "enabled"})
    assert answer.status_code == 400 and "tiny-chat never thinks" in answer.json()["error"]["message"]


def test_several_answers_with_seeds_of_their_own(saying: Callable[..., Live]) -> None:
    live = saying(lambda request: f"seed {request.sampling.seed}")
    answer = live.client.chat.completions.create(model="tiny", messages=ASKED, n=3, seed=5)
    assert [choice.message.content for choice in answer.choices] == ["seed 5", "seed 6", "seed 7"]
    assert answer.usage.prompt_tokens == len(live.engine.asked[0].prompt)
    chunks = list(live.client.chat.completions.create(model="tiny", messages=ASKED, n=3, seed=5, stream=True))
    texts = ["".join(c.choices[0].delta.content or "" for c in chunks if c.choices[0].index == place) for place in range(3)]
    assert texts == ["seed 5", "seed 6", "seed 7"]


def test_what_is_usual_with_a_model_holds_where_a_request_says_nothing(saying: Callable[..., Live], monkeypatch) -> None:
    live = saying(lambda request: f"{request.sampling.temperature} {request.sampling.top_k}")

    def said(**given: Any) -> str | None:
        return live.client.chat.completions.create(model="tiny", messages=ASKED, **given).choices[0].message.content

    assert said() == "1.0 0"
    monkeypatch.setattr(Served, "usual", property(lambda self: {"temperature": 0.6, "top_k": 20}))
    assert (said(), said(temperature=0)) == ("0.6 20", "0.0 20")
    said(temperature=0, extra_body={"thinking": {"type": "enabled"}, "top_k": 7})
    assert (live.engine.asked[-1].sampling.temperature, live.engine.asked[-1].sampling.top_k) == (0.6, 7)


def test_stops_length_and_logprobs(saying: Callable[..., Live]) -> None:
    live = saying("the cat sat on the mat and the dog ran off")
    cut = live.client.chat.completions.create(model="tiny", messages=ASKED, stop=[" mat"]).choices[0]
    assert (cut.message.content, cut.finish_reason) == ("the cat sat on the", "stop")
    short = live.client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=3, logprobs=True, top_logprobs=2).choices[
        0
    ]
    assert short.finish_reason == "length" and len(short.logprobs.content) == 3
    assert "".join(each.token for each in short.logprobs.content) == short.message.content
    assert all(each.top_logprobs[0].logprob == each.logprob == -0.5 for each in short.logprobs.content)
    chunks = list(live.client.chat.completions.create(model="tiny", messages=ASKED, max_tokens=3, logprobs=True, stream=True))
    streamed = [each.token for c in chunks if c.choices[0].logprobs for each in c.choices[0].logprobs.content]
    assert streamed == [each.token for each in short.logprobs.content]


def test_a_message_is_continued(saying: Callable[..., Live]) -> None:
    live = saying(" on the mat")
    messages = [*ASKED, {"role": "assistant", "content": "the cat sat", "prefix": True}]
    answer = live.post("/v1/chat/completions", model="tiny", messages=messages)
    assert answer.json()["choices"][0]["message"]["content"] == " on the mat"
    tokenizer = live.serving.models.own()[0].tokenizer
    assert tokenizer.decode(live.engine.asked[0].prompt.tokens).endswith("the cat sat")


def test_an_answer_goes_back_as_it_came(saying: Callable[..., Live]) -> None:
    live = saying("<|think|>Why?<|/think|>ok" + CALLS)
    first = live.client.chat.completions.create(model="tiny", messages=ASKED, tools=[WEATHER]).choices[0].message
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "12 degrees"}
    messages = [*ASKED, first.model_dump(), result]
    live.client.chat.completions.create(model="tiny", messages=messages, tools=[WEATHER])
    tokenizer = live.serving.models.own()[0].tokenizer
    text = tokenizer.decode(live.engine.asked[-1].prompt.tokens, skip_special=False)
    assert CALLS in text and "<|think|>Why?<|/think|>ok" in text and "<|tool_result|>12 degrees<|/tool_result|>" in text
