"""/v1/chat/completions on the real engine: constraints, tools, cancellation, many at once, drawings."""

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from fourfold.engine.constraint import Constraint
from fourfold.engine.engine import Engine
from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from fourfold.engine.store import PrefixStore
from fourfold.engine.writer import Writer
from fourfold.model.transformer import Transformer
from fourfold.server.models import Models, serve
from fourfold.server.settings import Settings
from tests.omni import make_omni
from tests.server.conftest import Live, running, spelled

ASKED = [{"role": "user", "content": "the cat sat"}]
TOOL = {
    "type": "function",
    "function": {
        "name": "pick",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "green"]}},
            "required": ["colour"],
            "additionalProperties": False,
        },
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"answer": {"type": "boolean"}, "size": {"enum": [1, 2, 3]}},
    "required": ["answer", "size"],
    "additionalProperties": False,
}


def test_a_schema_binds_the_answer_but_not_the_thoughts(live: Live) -> None:
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    answer = live.client.chat.completions.create(model="tiny", messages=ASKED, response_format=form, max_tokens=60, seed=1)
    found = json.loads(answer.choices[0].message.content)
    assert set(found) == {"answer", "size"} and answer.choices[0].finish_reason == "stop"
    bias = {str(live.serving.models.own()[0].tokenizer.special("/think")): 30}
    asked = {"model": "tiny-reasoner", "messages": ASKED, "response_format": form, "max_tokens": 120, "seed": 1, "logit_bias": bias}
    told = live.post("/v1/chat/completions", **asked).json()["choices"][0]
    assert set(json.loads(told["message"]["content"])) == {"answer", "size"} and told["finish_reason"] == "stop"


def test_a_grammar_is_read_once_for_all_answers_of_a_request(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    made, make = list[str](), Constraint.__init__

    def counted(self: Constraint, *given, **options) -> None:
        made.append(given[1])
        make(self, *given, **options)

    monkeypatch.setattr(Constraint, "__init__", counted)
    form = {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}}
    asked = {"model": "tiny", "messages": ASKED, "response_format": form, "max_tokens": 60, "seed": 1}
    three = [choice.message.content for choice in live.client.chat.completions.create(**asked, n=3).choices]
    assert len(made) == 1 and all(set(json.loads(said)) == {"answer", "size"} for said in three)
    assert three[0] == live.client.chat.completions.create(**asked).choices[0].message.content


def test_a_call_that_has_to_come_comes(live: Live) -> None:
    asked = {"model": "tiny", "messages": ASKED, "tools": [TOOL], "tool_choice": "required", "max_tokens": 80, "seed": 2}
    whole = live.client.chat.completions.create(**asked, parallel_tool_calls=False).choices[0]
    assert whole.finish_reason == "tool_calls" and len(whole.message.tool_calls) == 1
    call = whole.message.tool_calls[0].function
    assert call.name == "pick" and json.loads(call.arguments)["colour"] in ("red", "green")
    with live.client.chat.completions.stream(**asked, parallel_tool_calls=False) as stream:
        assert stream.get_final_completion().choices[0].message.tool_calls[0].function.arguments == call.arguments


def test_logprobs_are_those_of_the_completion(live: Live) -> None:
    served = live.serving.models.own()[0]
    ids = served.chat.encode(served.tokenizer, ASKED)
    asked = {"model": "tiny", "max_tokens": 6, "temperature": 0}
    chat = live.client.chat.completions.create(**asked, messages=ASKED, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    plain = live.client.completions.create(**asked, prompt=ids, logprobs=3).choices[0].logprobs
    assert [each.logprob for each in chat] == pytest.approx(plain.token_logprobs[: len(chat)], abs=1e-4)
    assert all(len(each.top_logprobs) == 3 and each.logprob <= each.top_logprobs[0].logprob for each in chat)


def test_many_at_once_are_each_as_alone(live: Live) -> None:
    def ask(number: int) -> tuple[str, str]:
        messages = [{"role": "user", "content": f"the cat sat {number % 4}"}]
        options = {"model": "tiny", "messages": messages, "seed": number % 4, "max_tokens": 8, "temperature": 0.5}
        choice = live.client.chat.completions.create(**options).choices[0]
        return choice.message.content, choice.finish_reason

    alone = [ask(number) for number in range(4)]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, range(16))) == alone * 4
    assert not live.serving.live and live.http.get("/health").json()["running"] == 0


def test_leaving_frees_the_engine(live: Live) -> None:
    engine = live.serving.models.own()[0].engine
    asked = {"model": "tiny", "prompt": "a", "max_tokens": 400, "stream": True}
    with live.http.stream("POST", "/v1/completions", json=asked) as answer:
        next(answer.iter_lines())
    live.client.completions.create(model="tiny", prompt="b", max_tokens=3)
    for _ in range(200):
        if engine.stats().running == 0:
            break
        live.http.get("/health")
    assert engine.stats().running == 0 and not live.serving.live


def test_a_prefix_is_found_again(speaker) -> None:
    settings = Settings(drain_seconds=1)
    engine = Engine(speaker, store=PrefixStore("tiny", 32 << 20, page=16))
    messages = [{"role": "user", "content": "the cat sat on the mat and the dog ran off. " * 4}]
    with running(Models([serve(speaker, "tiny", engine)], settings), settings) as live:
        first, second, other = (
            live.post("/v1/chat/completions", model="tiny", messages=messages, max_tokens=4, temperature=0, **more).json()
            for more in ({}, {}, {"user_id": "else"})
        )
    assert first["usage"]["prompt_cache_hit_tokens"] == other["usage"]["prompt_cache_hit_tokens"] == 0
    assert second["usage"]["prompt_cache_hit_tokens"] >= 16
    assert first["choices"] == second["choices"]


@pytest.fixture(scope="module")
def painter(tokenizer) -> Iterator[Live]:
    settings = Settings(drain_seconds=1)
    model = make_omni(tokenizer)
    with running(Models([serve(model, "omni", Engine(model))], settings), settings) as it:
        yield it


def test_what_is_drawn_comes_and_goes_back(painter: Live) -> None:
    """A bias makes the model begin a drawing; whole and streamed it is one PNG, and sent back it is its codes again."""
    served = painter.serving.models.own()[0]
    assert {"draw", "image"} <= served.can
    bias = {str(served.tokenizer.special("draw")): 100}
    asked = {"model": "omni", "messages": ASKED, "max_tokens": 40, "seed": 3, "logit_bias": bias}
    message = painter.post("/v1/chat/completions", **asked).json()["choices"][0]["message"]
    url = message["images"][0]["image_url"]["url"]
    assert base64.b64decode(url.removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")
    with painter.http.stream("POST", "/v1/chat/completions", json=asked | {"stream": True}) as answer:
        chunks = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    deltas = [chunk["choices"][0]["delta"] for chunk in chunks]
    told = [name for delta in deltas for name in delta if name in ("drawing", "images")]
    assert told == ["drawing", "images"] * len(message["images"])
    assert len(next(delta["drawing"]["grid"] for delta in deltas if "drawing" in delta)) == 2
    assert [image for delta in deltas for image in delta.get("images", [])] == message["images"]
    back = [*ASKED, message, {"role": "user", "content": "what is it?"}]
    ids = painter.post("/tokenize", model="omni", messages=back).json()["tokens"]
    assert served.tokenizer.special("draw") in ids
    assert painter.post("/v1/chat/completions", model="omni", messages=back, max_tokens=2).status_code == 200


@pytest.mark.parametrize(
    ("opened", "said", "text"),
    [
        (True, "the cat<|/think|>a cat sat", "the cata "),
        (False, "<|think|>the cat<|/think|>a cat sat", "the cata "),
        (False, "a cat sat", "a "),
    ],
)
def test_stop_strings_bind_the_answer_but_not_the_thoughts(speaker: Transformer, opened: bool, said: str, text: str) -> None:
    tokenizer = speaker.tokenizer
    after, opening = (tokenizer.special(name) for name in ("/think", "think"))
    asked = Request([1], Sampling(stop=["cat"], max_tokens=99), after=after, opening=None if opened else opening)
    writer, pieces = Writer(speaker, tokenizer, asked), []
    for token in spelled(tokenizer, said):
        pieces.append(writer._piece(token, None))
        if writer.reason is not None:
            break
    told = "".join(piece.text for piece in pieces).replace("<|think|>", "").replace("<|/think|>", "")
    assert (told, writer.reason) == (text, "stop")


def test_a_request_says_where_its_thoughts_end(saying: Callable[..., Live], speaker: Transformer) -> None:
    live, end = saying("ok"), speaker.tokenizer.special("/think")
    for model, after in (("tiny-reasoner", end), ("tiny-chat", None)):
        sampled = {"temperature": 0, "top_p": 0.5, "top_k": 3, "presence_penalty": 1}
        asked = {"model": model, "messages": [{"role": "user", "content": "the cat"}], **sampled}
        assert live.post("/v1/chat/completions", **asked).status_code == 200
        request = live.engine.asked[-1]
        assert request.after == after
        drawn = request.sampling
        given = (drawn.temperature, drawn.top_p, drawn.top_k, drawn.presence_penalty)
        assert given == ((1, 1, 3, 0) if model == "tiny-reasoner" else (0, 0.5, 3, 1))
    assert "while the model thinks" in live.http.get("/v1/fields").json()["/v1/chat/completions"]["temperature"]
