"""Names that another server answers to, and the load that compares them."""

import json
import socket
from collections.abc import Callable

import httpx
import openai
import pytest

from fourfold.cli.main import main
from fourfold.server.ledger import Ledger
from fourfold.server.load import Load, Target, measure
from fourfold.server.upstream import used
from fourfold.server.usage import add_up
from tests.server.conftest import Live

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


def test_usage_is_read_off_the_end() -> None:
    said = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 5}}
    assert used(b'data: {"usage": null}\n\ndata: ' + json.dumps({"usage": said}).encode() + b"\n\ndata: [DONE]\n\n") == (5, 4, 4)
    assert used(json.dumps({"content": 'a "usage": {', "usage": said, "id": "x"}).encode()) == (5, 4, 4)
    assert used(b'{"error": "none"}') == (0, 0, 0)


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
