"""Bodies of every shape against every operation of the OpenAPI document: an answer or a clear refusal, never a 500."""

import json
from collections.abc import Callable, Iterator

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fourfold.server.ledger import Ledger
from fourfold.server.models import Models, serve
from fourfold.server.settings import Settings
from tests.server.conftest import Live, Scripted, running

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "the cat"}], "max_tokens": 4}
PATHS = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/images/generations",
    "/v1/videos",
    "/tokenize",
    "/detokenize",
)
SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=12)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=8
)
FIELDS = [*CHAT, "prompt", "input", "tools", "tool_choice", "response_format", "stop", "logit_bias", "stream", "n", "thinking"]
FIELDS += ["seed", "temperature", "tokens", "suffix", "echo", "logprobs", "system", "size", "seconds", "stream_options"]


@pytest.fixture(scope="module")
def target(speaker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    """A server whose answers are short, with a ledger."""
    given = Settings(drain_seconds=1, most_answers=4, answer_tokens=4)
    ledger = Ledger(tmp_path_factory.mktemp("fuzz") / "ledger.db")
    with running(Models([serve(speaker, "tiny", Scripted(speaker, "ok <|tool_call|>{"))], given), given, ledger) as it:
        yield it


def sound(answer: httpx.Response) -> None:
    """A refusal is one line in the API's form."""
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        error = answer.json()["error"]
        assert error["message"] and "\n" not in error["message"] and error["type"] != "server_error"


@settings(max_examples=60)
@given(st.sampled_from(PATHS), st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3), st.booleans())
def test_malformed_fields_are_refused(target: Live, path: str, fields: dict, chat: bool) -> None:
    body = (CHAT if chat else {"model": "tiny"}) | fields
    sound(target.http.post(path, content=json.dumps(body).encode("utf-8", "replace"), headers={"content-type": "application/json"}))


@settings(max_examples=30)
@given(st.sampled_from(PATHS), st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode("utf-8", "replace")))
def test_malformed_bodies_are_refused(target: Live, path: str, body: bytes) -> None:
    sound(target.http.post(path, content=body, headers={"content-type": "application/json"}))


@pytest.mark.parametrize("depth", [50, 5000])
def test_deep_bodies_are_refused(target: Live, depth: int) -> None:
    for path in PATHS:
        deep = b'{"model": "tiny", "messages": ' + b"[" * depth + b"]" * depth + b"}"
        sound(target.http.post(path, content=deep, headers={"content-type": "application/json"}))


def test_the_document_describes_every_operation(target: Live) -> None:
    document = target.http.get("/openapi.json").json()
    assert {*PATHS, "/v1/models", "/health", "/v1/audio/transcriptions", "/user/balance"} <= document["paths"].keys()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation.get("description") or operation.get("summary"), path
    assert document["security"] and "bearer" in document["components"]["securitySchemes"]


@pytest.mark.slow
def test_schemathesis_finds_no_server_error(speaker) -> None:
    """10,000 bodies made from the document, fitting and not."""
    import schemathesis
    from schemathesis.checks import not_a_server_error
    from schemathesis.generation import GenerationMode

    made = Settings(drain_seconds=1, most_answers=4, answer_tokens=4)
    with running(Models([serve(speaker, "tiny", Scripted(speaker, "ok"))], made), made) as live:
        schema = schemathesis.openapi.from_url(f"{live.url}/openapi.json")
        operations = [operation for found in schema.get_all_operations() if (operation := found.ok()).method == "post"]
        each = 10_000 // len(operations) // 2
        for operation in operations:
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                _fuzz(operation.as_strategy(generation_mode=mode), each, not_a_server_error)
        assert not live.serving.live and live.http.get("/health").json()["running"] == 0


def _fuzz(cases: st.SearchStrategy, count: int, check: Callable) -> None:
    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(cases)
    def call(case) -> None:
        case.call_and_validate(checks=[check])

    call()
