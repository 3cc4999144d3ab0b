"""Names that another server answers to, and the load that compares them."""

import json
import socket
import threading
import time
from collections.abc import Callable

import httpx
import openai
import pytest
from fastapi import FastAPI
from sqlalchemy import select

from fourfold.cli.main import main
from fourfold.server.counting import Count
from fourfold.server.ledger import Ledger
from fourfold.server.load import Load, Target, measure
from fourfold.server.models import Models
from fourfold.server.settings import Settings
from fourfold.server.tables import CANCELLED, CHARGES, FINISHED, OPEN, reading
from fourfold.server.usage import add_up
from tests.server.conftest import Live, running
from tests.server.stand_in import served

ASKED = [{"role": "user", "content": "the cat"}]


@pytest.fixture
def pair(saying: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, tmp_path) -> tuple[Live, Live]:
    """A server that knows a model `far`, and the one behind it, which wants a key."""
    behind = saying("from afar", api_keys=["far key"])
    monkeypatch.setenv("FAR_KEY", "far key")
    far = {"base_url": f"{behind.url}/v1", "model": "tiny", "key_env": "FAR_KEY"}
    front = saying("from here", ledger=Ledger(tmp_path / "ledger.db"), upstreams={"far": far, "unlocked": far | {"key_env": None}})
    return front, behind


def test_a_name_is_passed_through(pair: tuple[Live, Live]) -> None:
    front, behind = pair
    answer = front.client.chat.completions.create(model="far", messages=ASKED, logprobs=True)
    assert answer.choices[0].message.content == "from afar"
    with front.client.chat.completions.stream(model="far", messages=ASKED) as stream:
        assert stream.get_final_completion().choices[0].message.content == "from afar"
    assert front.client.chat.completions.create(model="tiny", messages=ASKED).choices[0].message.content == "from here"
    assert len(behind.engine.asked) == 2 and behind.engine.asked[0].logprobs == 0
    rows = {row["model"]: row for row in add_up(front.serving.ledger.database, ["model"])}
    assert rows["far"]["output_tokens"] >= answer.usage.completion_tokens
    assert rows["far"]["miss_tokens"] >= answer.usage.prompt_tokens


def test_what_goes_wrong_there_is_told(pair: tuple[Live, Live], saying: Callable[..., Live]) -> None:
    front, behind = pair
    with pytest.raises(openai.BadRequestError, match="frob: is not a known field"):
        front.client.chat.completions.create(model="far", messages=ASKED, extra_body={"frob": 1})
    refused = front.post("/v1/chat/completions", model="unlocked", messages=ASKED)
    assert refused.status_code == 502 and "status 401" in refused.json()["error"]["message"]
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        port = deaf.getsockname()[1]
        slow = saying(upstreams={"deaf": {"base_url": f"http://127.0.0.1:{port}/v1", "read_seconds": 0.2}})
        assert slow.post("/v1/chat/completions", model="deaf", messages=ASKED).status_code == 504
    assert slow.post("/v1/chat/completions", model="deaf", messages=ASKED).status_code == 502


@pytest.mark.parametrize("path", ["/v1/../health", "/v1/chat/completions%3Fx=1", "/v1/" + "x" * 200, "/v1/a%20b"])
def test_only_plain_paths_are_passed_on(pair: tuple[Live, Live], path: str) -> None:
    front, _ = pair
    with socket.create_connection(("127.0.0.1", httpx.URL(front.url).port)) as line:
        body = json.dumps({"model": "far", "messages": ASKED}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\nconnection: close\r\n"
        line.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        assert line.makefile("rb").readline().split()[1] == b"404"
    assert not add_up(front.serving.ledger.database, ["model"])


def test_what_the_other_server_refuses_may_be_asked_again(pair: tuple[Live, Live]) -> None:
    front, _ = pair
    for _ in range(2):
        asked = {"model": "far", "messages": ASKED, "frob": 1}
        answer = front.http.post("/v1/chat/completions", json=asked, headers={"idempotency-key": "one"})
        assert answer.status_code == 400 and "frob" in answer.text


def test_an_answer_that_is_abandoned_is_charged_as_far_as_it_came(pair: tuple[Live, Live]) -> None:
    front, behind = pair
    behind.engine.say, behind.engine.steps = "abcdefgh " * 20, threading.Semaphore(40)
    asked = {"model": "far", "messages": [{"role": "user", "content": "12345678"}], "stream": True}
    with front.http.stream("POST", "/v1/chat/completions", json=asked, headers={"idempotency-key": "one"}) as answer:
        next(line for line in answer.iter_lines() if '"content":"' in line and '"content":""' not in line)
    (row,) = closed(front)
    assert row.status == CANCELLED and row.miss == 2 and 0 < row.output < 180 / 4
    behind.engine.steps.release(10_000)
    again = front.http.post("/v1/chat/completions", json=asked, headers={"idempotency-key": "one"})
    assert again.status_code == 200 and "idempotent-replayed" not in again.headers
    assert [row.status for row in closed(front)] == [CANCELLED, FINISHED]


def closed(live: Live) -> list:
    """The charges of a server, once none is open."""
    for _ in range(400):
        with reading(live.serving.ledger.database) as connection:
            found = list(connection.execute(select(CHARGES).order_by(CHARGES.c.id)))
        if found and all(row.status != OPEN for row in found):
            return found
        time.sleep(0.02)
    raise AssertionError("a charge stays open")


@pytest.mark.parametrize("usage", ["many", {"prompt_tokens": "9"}, {"prompt_tokens": 1, "prompt_cache_hit_tokens": 2}])
def test_a_usage_that_is_none_is_one_warning(saying: Callable[..., Live], tmp_path, caplog, usage: object) -> None:
    app = FastAPI()

    @app.post("/v1/chat/completions")
    def chat() -> dict:
        return {"choices": [{"message": {"role": "assistant", "content": "abcdefgh"}, "finish_reason": "stop"}], "usage": usage}

    with served(app) as url:
        front = saying(ledger=Ledger(tmp_path / "ledger.db"), upstreams={"odd": {"base_url": f"{url}/v1"}})
        answer = front.post("/v1/chat/completions", model="odd", messages=[{"role": "user", "content": "1234"}])
    assert answer.status_code == 200 and answer.json()["usage"] == usage
    assert [(row.status, row.hit, row.miss, row.output) for row in closed(front)] == [(FINISHED, 0, 1, 2)]
    (line,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "odd" in line and "\n" not in line


def test_connections_to_other_servers_are_closed_at_the_end(saying: Callable[..., Live]) -> None:
    behind = saying("from afar")
    models = Models([], Settings(upstreams={"far": {"base_url": f"{behind.url}/v1", "model": "tiny"}}, drain_seconds=1))
    with running(models, Settings(drain_seconds=1)) as front:
        assert front.post("/v1/chat/completions", model="far", messages=ASKED).status_code == 200
        assert len(behind.server.server_state.connections) == 1
    for _ in range(200):
        if not behind.server.server_state.connections:
            return
        time.sleep(0.02)
    raise AssertionError("the connection stays open")


SAID = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}}


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize(
    ("told", "whole", "cut_off"),
    [
        ([{"choices": [{"delta": {"content": "abcdefgh"}}], "usage": None}, {"usage": SAID}], (5, 4, 4), (0, 3, 2)),
        ([{"choices": [{"delta": {"reasoning_content": "abcde"}}]}, {"choices": []}], (0, 3, 2), (0, 3, 2)),
        ([{"message": {"usage": {"input_tokens": 7}}}, {"usage": {"output_tokens": 6}}], (0, 7, 6), (0, 7, 0)),
        (
            [{"type": "x.delta", "delta": "abcd"}, {"response": {"usage": {"input_tokens": 1, "output_tokens": 2}}}],
            (0, 1, 2),
            (0, 3, 1),
        ),
    ],
)
def test_tokens_are_read_off_a_stream_or_counted(told: list, whole: tuple, cut_off: tuple, size: int) -> None:
    asked = {"messages": [{"role": "user", "content": [{"type": "text", "text": "a" * 10}, {"image_url": {"url": "data:x"}}]}]}
    first, *rest = (b"event: x\r\ndata: " + json.dumps(event).encode() + b"\r\n\r\n" for event in told)
    stream = b": hello\n\n" + first + b"".join(rest) + b"data: [DONE]\n\n"
    for body, is_whole, expected in ((stream, True, whole), (stream[: len(first) + 20], False, cut_off)):
        count = Count("m", asked, is_stream=True)
        for at in range(0, len(body), size):
            count.add(body[at : at + size])
        assert count.tokens(is_whole) == expected


def test_tokens_are_read_off_a_whole_answer_or_counted() -> None:
    def counted(answer: object, asked: object) -> tuple[int, int, int]:
        count, body = Count("m", asked, is_stream=False), json.dumps(answer, indent=1).encode()
        for at in range(0, len(body), 50):
            count.add(body[at : at + 50])
        return count.tokens(whole=True)

    assert counted({"choices": [{"text": 'a "usage": {'}], "usage": SAID, "id": "x"}, {"prompt": "abc"}) == (5, 4, 4)
    assert counted({"choices": [{"text": "abcdefgh"}], "id": "x"}, {"prompt": [5, 6, 7]}) == (0, 3, 2)
    assert counted(["no object"], {}) == (0, 0, 0)


def test_models_are_measured_side_by_side(pair: tuple[Live, Live], capsys: pytest.CaptureFixture[str]) -> None:
    front, _ = pair
    command = ["bench", "serve", "tiny", "far", "--url", f"{front.url}/v1", "--clients", "3", "--requests", "5"]
    assert main([*command, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [each["model"] for each in told] == ["tiny", "far"]
    assert all(each["requests"] == 5 and each["errors"] == 0 and each["tokens"] > 0 for each in told)
    assert all(each["first_token_median"] <= each["first_token_p99"] <= each["seconds"] for each in told)
    assert main(command) == 0
    assert "tokens a second" in capsys.readouterr().out
    failed = measure(Target("huge", f"{front.url}/v1"), Load(2, 3, "a", 0, 4))
    assert failed.errors == 3 and failed.error.startswith("404") and failed.first_token_median is None
