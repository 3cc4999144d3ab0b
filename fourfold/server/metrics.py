"""What happens, for Prometheus: `/metrics`. Each server has a registry of its own."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from fourfold.engine.engine import Engine
    from fourfold.engine.request import Usage

router = APIRouter()

# Upper bounds in seconds: of what a person waits for, and of a token.
WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)
TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

GAUGES = {
    "running": ("requests_running", "Requests whose answer is being made."),
    "waiting": ("requests_waiting", "Requests in the queue."),
    "state_bytes": ("state_bytes", "Bytes that running sequences hold."),
}
COUNTERS = {
    "steps": ("steps", "Forward passes over all running sequences."),
    "tokens_in": ("prompt_tokens_computed", "Tokens of prompts that were read by the model."),
    "preemptions": ("preemptions", "Sequences that gave up their state to others."),
    "drafts_offered": ("draft_tokens", "Tokens proposed by speculation."),
    "drafts_accepted": ("draft_tokens_accepted", "Proposed tokens that were right."),
}


class Metrics:
    """Counts and times of a server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._engines: dict[str, Engine] = {}
        self.registry.register(_Engines(self._engines))
        self._answers = self._counter("answers", "Answers that are over, by how they ended.", "endpoint", "reason")
        self._prompt = self._counter("prompt_tokens", "Tokens of prompts, found in the prefix store (hit) or not (miss).", "cache")
        self._output = self._counter("output_tokens", "Tokens made.")
        self._queries = self._counter("prefix_cache_queries", "Prompts looked up in the prefix store.")
        self._hits = self._counter("prefix_cache_hits", "Prompts of which a part was there.")
        self._misses = self._counter("prefix_cache_misses", "Why the store gave no more of a prompt.", "reason")
        self._queued = self._times("queue_seconds", "From being asked to the first work on it.", WAITS)
        self._first = self._times("time_to_first_token_seconds", "From being asked to the first token.", WAITS)
        self._token = self._times(
            "time_per_output_token_seconds", "Mean time of the tokens after the first, one of each answer.", TOKENS
        )
        self._whole = self._times("request_seconds", "From being asked to the end of the answer.", WAITS)
        self._refused = Counter(
            "fourfold_refused", "Requests answered with an error.", ["status", "reason"], registry=self.registry
        )

    def watch(self, model: str, engine: "Engine") -> None:
        """Report what an engine says of itself whenever somebody looks."""
        self._engines[model] = engine

    def answered(self, model: str, endpoint: str, usage: "Usage", reason: str, seconds: float) -> None:
        """An answer is over. reason: its finish_reason, "cancelled" or "error"; seconds: from being asked to its end."""
        self._answers.labels(model, endpoint, reason).inc()
        self._prompt.labels(model, "hit").inc(usage.cached_tokens)
        self._prompt.labels(model, "miss").inc(usage.prompt_tokens - usage.cached_tokens)
        self._output.labels(model).inc(usage.completion_tokens)
        self._queued.labels(model).observe(usage.queued_seconds)
        self._whole.labels(model).observe(seconds)
        if usage.first_token_seconds is not None:
            self._looked_up(model, usage)
            self._first.labels(model).observe(usage.first_token_seconds)
            if usage.completion_tokens > 1:
                self._token.labels(model).observe((seconds - usage.first_token_seconds) / (usage.completion_tokens - 1))

    def refused(self, status: int, reason: str) -> None:
        """A request was answered with an error; `reason` is the error's code or type, one of a few."""
        self._refused.labels(str(status), reason).inc()

    def text(self) -> bytes:
        """All in Prometheus's text format."""
        return generate_latest(self.registry)

    def _looked_up(self, model: str, usage: "Usage") -> None:
        self._queries.labels(model).inc()
        if usage.cached_tokens:
            self._hits.labels(model).inc()
        if usage.miss_reason is not None:
            self._misses.labels(model, usage.miss_reason).inc()

    def _counter(self, name: str, said: str, *labels: str) -> Counter:
        return Counter(f"fourfold_{name}", said, ["model", *labels], registry=self.registry)

    def _times(self, name: str, said: str, bounds: tuple[float, ...]) -> Histogram:
        return Histogram(f"fourfold_{name}", said, ["model"], buckets=bounds, registry=self.registry)


class _Engines:
    """A collector that asks each engine for its figures when they are read."""

    def __init__(self, engines: "dict[str, Engine]") -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        seen = {model: engine.stats() for model, engine in self._engines.items()}
        for kinds, family in ((GAUGES, GaugeMetricFamily), (COUNTERS, CounterMetricFamily)):
            for field, (name, said) in kinds.items():
                metric = family(f"fourfold_{name}", said, labels=["model"])
                for model, stats in seen.items():
                    metric.add_metric([model], getattr(stats, field))
                yield metric


@router.get("/metrics", include_in_schema=False)
def metrics(request: Request) -> Response:
    """For Prometheus to read."""
    return Response(request.app.state.serving.metrics.text(), media_type=CONTENT_TYPE_LATEST)
