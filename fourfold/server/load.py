"""Many clients at once against an OpenAI-compatible server, and what they saw."""

import asyncio
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

import httpx
from rich.table import Table

from fourfold.errors import FourfoldError


@dataclass(frozen=True)
class Load:
    """`clients` ask at the same time, `requests` in all; each prompt begins with `shared` words that are the same for all."""

    clients: int
    requests: int
    prompt: str
    shared: int
    max_tokens: int

    def asked(self, model: str, number: int) -> dict[str, Any]:
        """The body of one request."""
        text = f"{'word ' * self.shared}{number}. {self.prompt}"
        options = {"max_tokens": self.max_tokens, "stream": True, "stream_options": {"include_usage": True}}
        return {"model": model, "messages": [{"role": "user", "content": text}], **options}


@dataclass(frozen=True)
class Target:
    """A model of a server: `url` ends in /v1."""

    model: str
    url: str


@dataclass(frozen=True)
class Seen:
    """What one request came to; seconds from being sent."""

    tokens: int = 0
    cached: int = 0
    prompt: int = 0
    first: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class Figures:
    """Of one model: tokens a second over all answers, seconds to the first token, requests that failed and the first reason."""

    model: str
    url: str
    requests: int
    errors: int
    error: str | None
    seconds: float
    tokens: int
    tokens_per_second: float
    first_token_median: float | None
    first_token_p99: float | None
    cached_share: float  # of the tokens of prompts


def named(models: list[str], url: str, key: str | None) -> list[Target]:
    """Targets from MODEL or MODEL@URL; without any, the first model of the server. Raises FourfoldError where nobody answers."""
    if models:
        parts = [name.partition("@") for name in models]
        return [Target(model, (where or url).rstrip("/")) for model, _, where in parts]
    try:
        answer = httpx.get(f"{url.rstrip('/')}/models", headers=_headers(key), trust_env=False)
        return [Target(answer.raise_for_status().json()["data"][0]["id"], url.rstrip("/"))]
    except (httpx.HTTPError, ValueError, LookupError) as error:
        raise FourfoldError(f"--url: {url} does not list models ({_said(error)}); start it with `fourfold serve`") from None


def measure(target: Target, load: Load, key: str | None = None, tick: Callable[[], object] = lambda: None) -> Figures:
    """Put the load on one model; `tick` is called when a request is over."""
    return asyncio.run(_measure(target, load, key, tick))


async def _measure(target: Target, load: Load, key: str | None, tick: Callable[[], object]) -> Figures:
    limits = httpx.Limits(max_connections=load.clients)
    async with httpx.AsyncClient(headers=_headers(key), timeout=httpx.Timeout(600), limits=limits, trust_env=False) as client:
        numbers, seen = iter(range(load.requests)), list[Seen]()

        async def one_after_another() -> None:
            for number in numbers:
                seen.append(await _ask(client, target, load.asked(target.model, number)))
                tick()

        began = time.perf_counter()
        await asyncio.gather(*(one_after_another() for _ in range(load.clients)))
        return _figures(target, seen, time.perf_counter() - began)


async def _ask(client: httpx.AsyncClient, target: Target, body: dict[str, Any]) -> Seen:
    began, first, pieces, usage = time.perf_counter(), None, 0, dict[str, Any]()
    try:
        async with client.stream("POST", f"{target.url}/chat/completions", json=body) as answer:
            if answer.status_code != 200:
                return Seen(error=f"{answer.status_code} {(await answer.aread()).decode('utf-8', 'replace')[:200]}")
            async for line in answer.aiter_lines():
                chunk = json.loads(line[6:]) if line.startswith("data: {") else {}
                if "error" in chunk:
                    return Seen(error=str(chunk["error"])[:200])
                if any(_speaks(choice.get("delta") or {}) for choice in chunk.get("choices") or []):
                    first, pieces = first or time.perf_counter() - began, pieces + 1
                usage = chunk.get("usage") or usage
    except (httpx.HTTPError, ValueError) as error:
        return Seen(error=_said(error))
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens") or 0
    return Seen(usage.get("completion_tokens", pieces), cached, usage.get("prompt_tokens", 0), first)


def _speaks(delta: dict[str, Any]) -> bool:
    return any(delta.get(name) for name in ("content", "reasoning_content", "reasoning", "tool_calls"))


def _figures(target: Target, seen: list[Seen], seconds: float) -> Figures:
    firsts = sorted(each.first for each in seen if each.first is not None)
    errors, tokens = [each.error for each in seen if each.error], sum(each.tokens for each in seen)
    return Figures(
        **asdict(target),
        requests=len(seen),
        errors=len(errors),
        error=errors[0] if errors else None,
        seconds=seconds,
        tokens=tokens,
        tokens_per_second=tokens / seconds,
        first_token_median=median(firsts) if firsts else None,
        first_token_p99=firsts[min(len(firsts) - 1, int(0.99 * len(firsts)))] if firsts else None,
        cached_share=sum(each.cached for each in seen) / max(1, sum(each.prompt for each in seen)),
    )


def table(figures: list[Figures]) -> Table:
    """Models side by side."""
    made = Table("", *(each.model for each in figures), box=None, header_style="bold")
    made.add_row("tokens a second", *(f"{each.tokens_per_second:.1f}" for each in figures))
    made.add_row("first token, median", *(_seconds(each.first_token_median) for each in figures))
    made.add_row("first token, 99th percentile", *(_seconds(each.first_token_p99) for each in figures))
    made.add_row("prompt tokens cached", *(f"{each.cached_share:.0%}" for each in figures))
    made.add_row("requests", *(str(each.requests) for each in figures))
    made.add_row("errors", *(f"{each.errors} ({each.error})" if each.errors else "0" for each in figures))
    made.add_row("server", *(each.url for each in figures))
    return made


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"


def _headers(key: str | None) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"} if key else {}


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200].rstrip(": ")
