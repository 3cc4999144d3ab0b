"""Who is let in, what is refused, and what happens when somebody leaves, stops reading or never finishes asking."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx
import openai
import pytest

from fourfold.errors import ConfigError
from fourfold.server import sse
from fourfold.server.auth import check_exposure, is_local
from fourfold.server.ledger import Ledger
from fourfold.server.models import Models
from fourfold.server.opening import open_app
from fourfold.server.settings import Settings, read_settings
from tests.server.conftest import Live

ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "the cat"}]}
CHAT = "/v1/chat/completions"


def wait_for(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not true():
        assert time.monotonic() < deadline, "it never came true"
        time.sleep(0.01)


# Keys


def test_keys_of_settings_and_ledger_open(saying: Callable[..., Live], tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger.db")
    made, revoked = ledger.add_key("ada"), ledger.add_key("gone")
    ledger.revoke_key("gone")
    live = saying(ledger=ledger, api_keys=["from settings"])
    for headers in ({"authorization": f"Bearer {made}"}, {"x-api-key": made}, {"Authorization": "bearer from settings"}):
        assert live.http.post(CHAT, json=ASKED, headers=headers).status_code == 200
    for headers in ({}, {"authorization": f"Bearer {revoked}"}, {"x-api-key": made[:-1]}, {"authorization": f"Basic {made}"}):
        answer = live.http.post(CHAT, json=ASKED, headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
        assert answer.headers["www-authenticate"] == "Bearer"
    with pytest.raises(openai.AuthenticationError):
        live.client.models.list()
    assert live.http.get("/health").status_code == 200 and live.http.get("/metrics").status_code == 401
    counted = live.http.get("/metrics", headers={"x-api-key": made}).text
    assert 'fourfold_refused_total{reason="invalid_api_key",status="401"}' in counted
    assert live.http.post("/v1/messages", json={}).json()["type"] == "error"


def test_keys_and_users_share_no_prefixes(saying: Callable[..., Live]) -> None:
    live = saying(api_keys=["a", "b"])
    for key, user in (("a", None), ("b", None), ("a", "u1"), ("a", None)):
        body = ASKED if user is None else ASKED | {"user_id": user}
        assert live.http.post(CHAT, json=body, headers={"x-api-key": key}).status_code == 200
    first, second, third, fourth = [request.namespace for request in live.engine.asked]
    assert first == fourth and len({first, second, third}) == 3
    assert live.http.post(CHAT, json=ASKED | {"user_id": "no spaces"}, headers={"x-api-key": "a"}).status_code == 400


@pytest.mark.parametrize(
    ("host", "public"),
    [("127.0.0.1", False), ("::1", False), ("localhost", False), ("0.0.0.0", True), ("", True), ("example.org", True)],
)
def test_a_public_address_needs_keys(host: str, public: bool) -> None:
    settings = Settings(host=host)
    assert settings.is_public == public
    if public:
        with pytest.raises(ConfigError, match="host: .* no API keys"):
            check_exposure(settings, None)
    for fine in ({"api_keys": ["k"]}, {"public_without_keys": True}):
        allowed = Settings(host=host, **fine)
        check_exposure(allowed, None)


def test_exposure_is_checked_before_models_are_loaded(tmp_path: Path) -> None:
    def load(where: str) -> None:
        raise AssertionError("loaded for nothing")

    with pytest.raises(ConfigError, match="host: .* no API keys"):
        open_app(["tiny"], Settings(host="0.0.0.0", ledger=str(tmp_path / "ledger.db")), load)  # type: ignore[arg-type]


def test_without_keys_pages_from_elsewhere_have_nothing_done(saying: Callable[..., Live]) -> None:
    live = saying(cors=["https://friend.example"])
    for origin, status in (
        ("https://evil.example", 403),
        ("null", 403),
        ("https://friend.example", 200),
        ("http://localhost:1", 200),
        ("http://127.0.0.1:8000", 200),
    ):
        assert live.http.post(CHAT, json=ASKED, headers={"origin": origin}).status_code == status, origin
    assert len(live.engine.asked) == 3


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models", 200),
        ("/beta/models", 200),
        ("/beta/anthropic/v1/models/tiny", 200),
        ("/beta/page/../v1/models", 404),
        ("/modelsandmore", 401),
        ("/betav1/models", 401),
        ("/page%2f..%2fv1/models", 404),
        ("//v1/models", 401),
    ],
)
def test_paths_lead_past_nobody(saying: Callable[..., Live], path: str, status: int) -> None:
    live = saying(api_keys=["k"])
    line = socket.create_connection(("127.0.0.1", httpx.URL(live.url).port))  # a client of its own would tidy the path
    with line:
        key = "x-api-key: k\r\n" if status == 200 else ""
        line.sendall(f"GET {path} HTTP/1.1\r\nhost: localhost\r\n{key}connection: close\r\n\r\n".encode())
        assert int(line.makefile("rb").readline().split()[1]) == status


def test_without_keys_no_other_name_leads_here(saying: Callable[..., Live]) -> None:
    live = saying()
    assert live.http.get("/v1/models", headers={"host": "evil.example:80"}).status_code == 403
    assert live.http.get("/v1/models", headers={"host": "localhost:1"}).status_code == 200
    assert [is_local(host) for host in ("[::1]:80", "[::1]", "10.0.0.1", "a.b", "1.example.com:80")] == [
        True,
        True,
        True,
        False,
        False,
    ]


def test_other_origins_are_off_by_default(saying: Callable[..., Live]) -> None:
    asked = {"origin": "https://page.example", "access-control-request-method": "POST"}
    assert "access-control-allow-origin" not in saying().http.options(CHAT, headers=asked).headers
    allowed = saying(cors=["https://page.example"], api_keys=["k"]).http.options(CHAT, headers=asked)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == "https://page.example"


# Bounds


def test_bodies_have_a_bound(saying: Callable[..., Live]) -> None:
    live = saying(body_bytes=1000)
    large = json.dumps(ASKED | {"user": "x" * 2000}).encode()
    chunks = (large[i : i + 100] for i in range(0, len(large), 100))
    for content in (large, chunks):
        answer = live.http.post(CHAT, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413 and answer.json()["error"]["type"] == "request_too_large"
    assert live.post(CHAT, **ASKED).status_code == 200


def test_a_full_queue_says_when_to_come_back(saying: Callable[..., Live]) -> None:
    live = saying(most_waiting=1)
    live.engine.steps = threading.Semaphore(0)
    with live.http.stream("POST", CHAT, json=ASKED | {"stream": True}) as first:
        refused = live.post(CHAT, **ASKED)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "3")
        assert refused.json()["error"]["type"] == "rate_limit_error" and refused.json()["error"]["code"] == "queue_full"
        assert live.post("/v1/messages", **ASKED, max_tokens=5).json()["error"]["type"] == "rate_limit_error"
        live.engine.steps.release(100)
        assert "[DONE]" in first.read().decode()
    assert 'reason="queue_full"' in live.http.get("/metrics").text


def test_many_prompts_wait_for_their_turn(saying: Callable[..., Live]) -> None:
    live = saying("ok", most_waiting=1)
    answer = live.post("/v1/completions", model="tiny", prompt=["a", "b", "c"])
    assert [choice["text"] for choice in answer.json()["choices"]] == ["ok"] * 3


def test_answers_have_bounds(saying: Callable[..., Live]) -> None:
    live = saying("word " * 50, most_tokens=10, answer_tokens=4, most_answers=2)
    assert live.post(CHAT, **ASKED).json()["usage"]["completion_tokens"] == 4
    assert live.post(CHAT, **ASKED, max_tokens=9).json()["usage"]["completion_tokens"] == 9
    for field in ("max_tokens", "max_completion_tokens"):
        answer = live.post(CHAT, **ASKED, **{field: 11})
        assert answer.status_code == 400 and answer.json()["error"]["param"] == field
    assert live.post(CHAT, **ASKED, n=3).status_code == 400


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (CHAT, ASKED | {"frobnicate": 1}, "frobnicate: is not a known field"),
        (CHAT, ASKED | {"messages": [{"role": "user", "content": "a", "mood": "glad"}]}, "messages[0].mood: is not a known field"),
        (CHAT, ASKED | {"messages": [{"role": "king", "content": "a"}]}, "messages[0].role: "),
        (CHAT, ASKED | {"messages": [{"role": "user", "content": 5}]}, "messages[0].content: "),
        (CHAT, ASKED | {"messages": []}, "messages: "),
        (CHAT, ASKED | {"top_logprobs": 2}, "top_logprobs: needs logprobs"),
        (CHAT, ASKED | {"temperature": "hot"}, "temperature: "),
        (CHAT, ASKED | {"tool_choice": "required"}, "tool_choice: "),
        (CHAT, ASKED | {"response_format": {"type": "xml"}}, "response_format.type: "),
        (CHAT, ASKED | {"reasoning_effort": "huge"}, "reasoning_effort: "),
        (CHAT, {"messages": ASKED["messages"]}, "model: is missing"),
        (CHAT, [], "body: "),
        ("/v1/completions", {"model": "tiny", "prompt": "a", "frob": 1}, "frob: is not a known field"),
        ("/tokenize", {"text": "a"}, "text: is not a known field"),
    ],
)
def test_a_fault_is_one_line_that_names_the_field(live: Live, path: str, body: object, says: str) -> None:
    answer = live.http.post(path, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["message"].startswith(says) and "\n" not in error["message"]
    assert error["param"] == says.split(":")[0]


def test_fields_without_effect_are_published(live: Live) -> None:
    published = live.http.get("/v1/fields").json()
    for path, prompt in ((CHAT, ASKED), ("/v1/completions", {"model": "tiny", "prompt": "a"})):
        assert {"user", "metadata", "store", "service_tier"} <= published[path].keys()
        never = [name for name, why in published[path].items() if "while the model thinks" not in why]
        answer = live.post(path, **prompt, max_tokens=1, **{name: {"any": "thing"} for name in never})
        assert answer.status_code == 200, answer.text
    schemas = live.http.get("/openapi.json").json()["components"]["schemas"]
    assert "service_tier (there is one)" in schemas["ChatBody"]["description"]


def test_what_is_not_there(live: Live) -> None:
    assert live.post(CHAT, **ASKED | {"model": "huge"}).json()["error"]["code"] == "model_not_found"
    with pytest.raises(openai.NotFoundError, match="huge is not served here"):
        live.client.models.retrieve("huge")
    assert live.http.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert live.http.get(CHAT).status_code == 405
    answer = live.http.post(CHAT, content=b"{", headers={"content-type": "application/json"})
    assert answer.status_code == 400 and answer.json()["error"]["message"].startswith("body: is not JSON")
    # A page of another origin may send text without asking first; so it is not taken.
    assert live.http.post(CHAT, content=json.dumps(ASKED), headers={"content-type": "text/plain"}).status_code == 415
    assert live.http.get("/v1/models").headers["x-request-id"].startswith("req_")


def test_models_and_their_names(saying: Callable[..., Live]) -> None:
    live = saying(aliases={"gpt-4o": {"model": "tiny"}}, upstreams={"far": {"base_url": "http://127.0.0.1:9/v1"}})
    assert [model.id for model in live.client.models.list()] == ["tiny", "tiny-chat", "tiny-reasoner", "far", "gpt-4o"]
    assert live.client.models.retrieve("tiny-chat").model_extra["thinking"] is False
    assert live.post("/chat/completions", **ASKED | {"model": "gpt-4o"}).json()["model"] == "gpt-4o"
    with pytest.raises(ConfigError, match="aliases.a.model: b is not served"):
        Models([], Settings(aliases={"a": {"model": "b"}}))


# Leaving


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("path", "prompt"), [(CHAT, ASKED), ("/v1/completions", {"model": "tiny", "prompt": ["a", "b"]})])
def test_an_answer_that_nobody_waits_for_is_cancelled(saying: Callable[..., Live], stream: bool, path: str, prompt: dict) -> None:
    live = saying("word " * 200)
    live.engine.steps = threading.Semaphore(3)
    asked = len(prompt.get("prompt", "1"))
    with socket.create_connection(("127.0.0.1", httpx.URL(live.url).port)) as line:
        body = json.dumps(prompt | {"stream": stream, "max_tokens": 150}).encode()
        head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        line.sendall(head.encode() + body)
        wait_for(lambda: len(live.serving.live) == asked)
    wait_for(lambda: not live.serving.live)
    live.engine.steps.release(asked)  # one step each: it is enough
    wait_for(lambda: live.engine.cancelled == asked)
    live.engine.steps.release(100)
    assert live.post(CHAT, **ASKED, max_tokens=5).status_code == 200


@pytest.mark.parametrize(("write_seconds", "most_unread"), [(0.5, 100_000), (60, 100)])
def test_a_client_that_does_not_read_is_given_up(
    saying: Callable[..., Live], monkeypatch: pytest.MonkeyPatch, write_seconds: float, most_unread: int
) -> None:
    monkeypatch.setattr(sse, "MOST_UNREAD", most_unread)
    live = saying("1 " * 5000, write_seconds=write_seconds)
    live.engine.steps = threading.Semaphore(4000)  # more than fits between the two
    with socket.create_connection(("127.0.0.1", httpx.URL(live.url).port)) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        body = json.dumps(ASKED | {"stream": True, "max_tokens": 10_000}).encode()
        line.sendall(f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n".encode())
        line.sendall(f"content-length: {len(body)}\r\n\r\n".encode() + body)
        wait_for(lambda: bool(live.serving.live))
        wait_for(lambda: not live.serving.live)
        live.engine.steps.release(1)
        wait_for(lambda: live.engine.cancelled == 1)
    assert live.http.get("/health").json()["status"] == "ok"


def test_who_never_finishes_asking_is_dropped(saying: Callable[..., Live]) -> None:
    live = saying(body_seconds=0.4)
    address = ("127.0.0.1", httpx.URL(live.url).port)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
    with ExitStack() as stack:
        silent, slow, late = (stack.enter_context(socket.create_connection(address)) for _ in range(3))
        slow.sendall(b"GET /health HTTP/1.1\r\nhost: loc")
        late.sendall(head.encode() + b"{")
        for line in (silent, slow, late):
            line.settimeout(20)
        assert silent.recv(1000) == b"" and slow.recv(1000) == b""
        assert late.recv(1000).startswith(b"HTTP/1.1 408 ")
    assert live.post(CHAT, **ASKED).status_code == 200


def test_silence_is_filled_with_comments(saying: Callable[..., Live]) -> None:
    live = saying("late", keep_alive_seconds=0.05)
    live.engine.steps = threading.Semaphore(0)
    with live.http.stream("POST", CHAT, json=ASKED | {"stream": True}) as answer:
        lines = answer.iter_lines()
        assert next(lines) == ": keep-alive"
        live.engine.steps.release(100)
        assert [line for line in lines if line.startswith("data: ")][-1] == "data: [DONE]"


def test_stopping_finishes_what_is_quick_and_fails_the_rest(saying: Callable[..., Live]) -> None:
    live = saying("word " * 50, drain_seconds=0.5)
    live.engine.steps = threading.Semaphore(2)
    with live.http.stream("POST", CHAT, json=ASKED | {"stream": True}) as answer:
        lines = answer.iter_lines()
        assert "role" in next(lines)
        live.server.should_exit = True
        wait_for(lambda: live.serving.stopping)
        wait_for(lambda: all(reply.error for reply in live.serving.live))
        live.engine.steps.release(100)
        said = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        assert said[-1]["error"]["code"] == "stopping"


def test_a_broken_engine_is_a_500_without_details(saying: Callable[..., Live], caplog: pytest.LogCaptureFixture) -> None:
    def broken(request: object) -> str:
        raise RuntimeError("secret path /root/x")

    live = saying(broken)
    for asked in (ASKED, ASKED | {"stream": True}):
        answer = live.http.post(CHAT, json=asked)
        assert "internal error" in answer.text and "secret" not in answer.text
    assert live.post(CHAT, **ASKED).status_code == 500


def test_settings_come_from_a_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('port = 9000\ncors = ["*"]\n[upstreams.big]\nbase_url = "https://x.example/v1"\nkey_env = "X"\n')
    settings = read_settings(file, port=9001, host=None)
    assert (settings.port, settings.host, settings.upstreams["big"].key_env) == (9001, "127.0.0.1", "X")
    file.write_text("prot = 9000")
    with pytest.raises(ConfigError, match="^prot: "):
        read_settings(file)
