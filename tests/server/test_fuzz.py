"""Bodies of every shape against every operation of the OpenAPI document: an answer or a clear refusal, never a 500.

FOURFOLD_TEST_BODIES says how many schemathesis makes (by default 2000).
"""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from schemathesis.generation import GenerationMode

from fourfold.formats.ours import save
from fourfold.model.transformer import Transformer
from fourfold.server.ledger import Ledger
from fourfold.server.models import Models, serve
from fourfold.server.settings import Settings
from tests.server.conftest import Live, Scripted
from tests.server.conftest import running as serving
from tests.server.killing import running

BODIES = int(os.environ.get("FOURFOLD_TEST_BODIES", "2000"))
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
    with serving(Models([serve(speaker, "tiny", Scripted(speaker, "ok <|tool_call|>{"))], given), given, ledger) as it:
        yield it


def sound(answer: httpx.Response | requests.Response) -> None:
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
def test_malformed_bodies_of_the_document_leave_no_trace(omni: Transformer, tmp_path: Path) -> None:
    """BODIES bodies that do not fit the document, and a tenth as many that do: no 500, and afterwards all is as it was."""
    save(omni, tmp_path / "tiny", omni.tokenizer)
    limits = {"most_answers": 4, "answer_tokens": 4, "most_tokens": 8}
    with running(tmp_path, **limits) as (process, url):
        operations = list(posts(httpx.get(f"{url}/openapi.json", trust_env=False).json()))
        each, states, codes, faults = BODIES // 2 // len(operations) + 1, list[State](), Counter[int](), list[str]()
        for half in range(2):  # what grows in the first may be a cache that fills
            for operation in operations:
                for mode, most in ((GenerationMode.NEGATIVE, each), (GenerationMode.POSITIVE, each // 10 + 1)):
                    faults += fuzz(operation.as_strategy(generation_mode=mode), most, half, url, codes)
            states.append(State.of(process.pid, url))
        first, last = states
        print(f"{codes.total()} bodies to {len(operations)} operations: {dict(codes)}, then {last}, {first} at half time")
        assert not faults, "\n".join(faults)
        assert last.working == 0 and last.sockets <= first.sockets and last.handles <= first.handles + 4
        assert last.megabytes < first.megabytes + 32
        assert process.is_alive()


def posts(document: dict) -> Iterator[Any]:
    """What takes bodies. A model's name is one that is served, as most bodies would be refused for that alone."""
    for schema in document["components"]["schemas"].values():
        if "model" in schema.get("properties", {}):
            schema["properties"]["model"] = {"type": "string", "enum": ["tiny"]}
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        if (operation := found.ok()).method == "post":
            yield operation


def fuzz(cases: st.SearchStrategy, count: int, number: int, url: str, codes: Counter[int]) -> list[str]:
    """Send so many cases, count the answers by status, and return what is wrong with some."""
    faults = []

    @seed(number)
    @settings(max_examples=count, deadline=None, database=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])
    @given(cases)
    def call(case: Any) -> None:
        answer = case.call(base_url=url, session=session, timeout=60)
        codes[answer.status_code] += 1
        try:
            sound(answer)
        except Exception as error:
            faults.append(f"{case.operation.label} {answer.request.body!r:.500}: {answer.status_code} {error}")

    with requests.Session() as session:
        session.trust_env = False
        call()
    return faults


@dataclass(frozen=True)
class State:
    """What a server's process holds while nobody asks anything."""

    working: int  # requests
    sockets: int
    handles: int
    megabytes: float

    @classmethod
    def of(cls, pid: int, url: str) -> "State":
        """As of now, but a second later for what it is about to finish or close."""
        time.sleep(1)
        health = httpx.get(f"{url}/health", trust_env=False).json()
        time.sleep(1)
        links = [os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        sockets = sum(link.startswith("socket:") for link in links)
        return cls(health["running"] + health["waiting"], sockets, len(links), pages * os.sysconf("SC_PAGE_SIZE") / 2**20)
