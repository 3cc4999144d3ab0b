"""Metrics: what Prometheus reads is what happened."""

from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from fourfold.engine.request import Stats, Usage
from fourfold.server import metrics
from fourfold.server.metrics import Metrics


def read(said: Metrics, name: str, **labels: str) -> float | None:
    return said.registry.get_sample_value(f"fourfold_{name}", labels)


def test_an_answer_is_counted_and_timed() -> None:
    said = Metrics()
    usage = Usage(100, 64, 11, "new text", queued_seconds=0.02, first_token_seconds=0.2)
    said.answered("m", "/v1/x", usage, "stop", 1.2)
    assert read(said, "answers_total", model="m", endpoint="/v1/x", reason="stop") == 1
    assert read(said, "prompt_tokens_total", model="m", cache="hit") == 64
    assert read(said, "prompt_tokens_total", model="m", cache="miss") == 36
    assert read(said, "output_tokens_total", model="m") == 11
    assert read(said, "prefix_cache_queries_total", model="m") == read(said, "prefix_cache_hits_total", model="m") == 1
    assert read(said, "prefix_cache_misses_total", model="m", reason="new text") == 1
    assert read(said, "queue_seconds_sum", model="m") == 0.02
    assert read(said, "time_to_first_token_seconds_sum", model="m") == 0.2
    assert read(said, "time_per_output_token_seconds_sum", model="m") == pytest.approx(0.1)
    assert read(said, "request_seconds_sum", model="m") == 1.2
    assert read(said, "request_seconds_bucket", model="m", le="1.0") == 0
    assert read(said, "request_seconds_bucket", model="m", le="2.5") == 1


def test_an_answer_that_never_began_was_not_looked_up() -> None:
    said = Metrics()
    said.answered("m", "/v1/x", Usage(100), "cancelled", 0.5)
    assert read(said, "answers_total", model="m", endpoint="/v1/x", reason="cancelled") == 1
    assert read(said, "prefix_cache_queries_total", model="m") is None
    assert read(said, "time_to_first_token_seconds_count", model="m") is None


def test_one_token_has_no_time_between_tokens() -> None:
    said = Metrics()
    said.answered("m", "/v1/x", Usage(5, 0, 1, "cold", 0.0, 0.1), "length", 0.1)
    assert read(said, "time_to_first_token_seconds_count", model="m") == 1
    assert read(said, "time_per_output_token_seconds_count", model="m") is None
    assert read(said, "prefix_cache_hits_total", model="m") is None


def test_refusals_are_counted_by_status_and_reason() -> None:
    said = Metrics()
    for _ in range(3):
        said.refused(429, "queue_full")
    said.refused(402, "insufficient_balance")
    assert read(said, "refused_total", status="429", reason="queue_full") == 3
    assert read(said, "refused_total", status="402", reason="insufficient_balance") == 1


def test_engines_are_asked_when_somebody_looks() -> None:
    said, figures = (
        Metrics(),
        Stats(running=2, waiting=1, steps=5, preemptions=1, drafts_offered=9, drafts_accepted=4, state_bytes=77),
    )
    engine = SimpleNamespace(stats=lambda: figures)
    said.watch("m", engine)  # type: ignore[arg-type]
    said.watch("n", SimpleNamespace(stats=Stats))  # type: ignore[arg-type]
    assert read(said, "requests_running", model="m") == 2 and read(said, "requests_running", model="n") == 0
    assert read(said, "requests_waiting", model="m") == 1 and read(said, "state_bytes", model="m") == 77
    assert read(said, "draft_tokens_total", model="m") == 9 and read(said, "draft_tokens_accepted_total", model="m") == 4
    assert read(said, "preemptions_total", model="m") == 1
    figures = Stats(running=3)
    assert read(said, "requests_running", model="m") == 3


def test_servers_do_not_mix() -> None:
    one, two = Metrics(), Metrics()
    one.refused(401, "invalid_api_key")
    assert b'status="401"' in one.text() and b'status="401"' not in two.text()


def test_the_endpoint_speaks_prometheus() -> None:
    app, said = FastAPI(), Metrics()
    said.watch("m", SimpleNamespace(stats=lambda: Stats(running=1)))  # type: ignore[arg-type]
    said.answered("m", "/v1/x", Usage(10, 4, 3, "evicted", 0.1, 0.2), "stop", 0.3)
    app.state.serving = SimpleNamespace(metrics=said)
    app.include_router(metrics.router)
    response = TestClient(app).get("/metrics")
    assert response.status_code == 200 and response.headers["content-type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(response.text)}
    assert families["fourfold_requests_running"].type == "gauge" and families["fourfold_steps"].type == "counter"
    assert families["fourfold_request_seconds"].type == "histogram"
    assert all(family.documentation for family in families.values())
