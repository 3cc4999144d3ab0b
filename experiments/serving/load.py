"""Many clients at one server for some minutes: failed and mixed-up answers, speed, and whether its memory grows. Writes load.json.

python experiments/serving/load.py [MODEL] [--clients 32] [--minutes 5]

Half of the prompts share a long beginning, half do not. What each prompt is answered, greedily, is asked of `generate` alone before
the server starts. An answer is mixed up when it is another one; where the model's two best tokens lie within a near tie, batches
may differ from what one sequence says, so what differs is counted and some of it shown. The server runs as a process of its own, by
default settings, with an empty prefix store.
"""

import argparse
import asyncio
import json
import os
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from experiments.lib.machine import describe
from fourfold.cli.generate import open_model
from fourfold.engine.generate import generate
from fourfold.engine.prompts import prompt_of
from fourfold.engine.sampler import Sampling
from fourfold.files import atomic_file

SEED, TOKENS, PROMPTS = 0, 32, 48  # of each answer; prompts that differ
SHARED = "You are a patient guide to a large library, and you answer in one short sentence that is easy to follow. " * 12
ASKED = ("What is the capital of {}?", "Tell me about {}.", "Where is {}?", "Write a line about {}.")
THINGS = "France Spain Japan Peru Kenya India a-cat a-dog the-sea the-moon bread a-river".split()


def chats() -> list[list[dict[str, str]]]:
    """The prompts: every second one begins with what half of them share."""
    every = [ask.format(thing.replace("-", " ")) for ask in ASKED for thing in THINGS]
    head = [{"role": "system", "content": SHARED}]
    return [[*head * (i % 2), {"role": "user", "content": text}] for i, text in enumerate(every[:PROMPTS])]


def expected(name: str) -> list[str]:
    """The answer to each prompt, made alone."""
    model = open_model(name)
    sampling = Sampling(temperature=0, max_tokens=TOKENS)
    return ["".join(p.text for p in generate(model, prompt_of(model, chat)[0], sampling, model.tokenizer)) for chat in chats()]


@contextmanager
def server(name: str, *options: str) -> Iterator[tuple[str, int]]:
    """The address of a server of the model, and the number of its process; `options` are those of `fourfold serve`."""
    with tempfile.TemporaryDirectory() as home:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "fourfold", "serve", name, "--port", str(port), *options]
        kept = Path(os.environ.get("FOURFOLD_HOME", Path.home() / ".cache" / "fourfold"))
        (Path(home) / "models").symlink_to(kept / "models")
        process = subprocess.Popen(command, env=os.environ | {"FOURFOLD_HOME": home}, stdout=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            while True:
                try:
                    httpx.get(f"{url}/health", trust_env=False).raise_for_status()
                    break
                except httpx.HTTPError:
                    if process.poll() is not None:
                        raise SystemExit("the server did not start") from None
                    time.sleep(0.5)
            yield url, process.pid
        finally:
            process.terminate()
            process.wait()


class Run:
    """What the clients saw: seconds to first tokens, tokens, errors and answers that differ; memory by seconds."""

    def __init__(self, url: str, name: str, answers: list[str], seconds: float) -> None:
        self.url, self.name, self.answers = url, name, answers
        self.until = time.monotonic() + seconds
        self.first: list[float] = []
        self.tokens = self.done = self.cached = self.read = 0
        self.errors: list[str] = []
        self.other: list[dict[str, str]] = []
        self.memory: list[tuple[float, int]] = []

    async def client(self, http: httpx.AsyncClient, number: int) -> None:
        """One question after the other, in an order of its own."""
        order, prompts = random.Random(SEED + number), chats()
        while time.monotonic() < self.until:
            place = order.randrange(len(prompts))
            try:
                await self._ask(http, prompts[place], self.answers[place])
            except (httpx.HTTPError, ValueError, LookupError) as error:
                self.errors.append(f"{type(error).__name__}: {error}"[:200])

    async def _ask(self, http: httpx.AsyncClient, chat: list[dict[str, str]], wanted: str) -> None:
        body = {"model": self.name, "messages": chat, "temperature": 0, "max_tokens": TOKENS, "stream": True}
        began, said, first = time.monotonic(), "", None
        async with http.stream(
            "POST", f"{self.url}/v1/chat/completions", json=body | {"stream_options": {"include_usage": True}}
        ) as got:
            if got.status_code != 200:
                raise ValueError(f"status {got.status_code}")
            async for line in got.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                if "error" in chunk:
                    raise ValueError(str(chunk["error"]))
                for choice in chunk["choices"]:
                    said += (text := choice["delta"].get("content") or "")
                    first = first or (time.monotonic() - began if text else None)
                if chunk.get("usage"):
                    self.tokens += chunk["usage"]["completion_tokens"]
                    self.cached += chunk["usage"]["prompt_cache_hit_tokens"]
                    self.read += chunk["usage"]["prompt_tokens"]
        self.done += 1
        self.first += [first] if first is not None else []
        if said != wanted:
            self.other.append({"asked": chat[-1]["content"], "said": said, "alone": wanted})

    async def watch(self, pid: int) -> None:
        """Note the server's resident bytes each second."""
        began = time.monotonic()
        while time.monotonic() < self.until:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
            self.memory.append((time.monotonic() - began, pages * os.sysconf("SC_PAGE_SIZE")))
            await asyncio.sleep(1)

    async def go(self, clients: int, pid: int) -> None:
        limits = httpx.Limits(max_connections=clients)
        async with httpx.AsyncClient(timeout=300, trust_env=False, limits=limits) as http:
            await asyncio.gather(self.watch(pid), *(self.client(http, number) for number in range(clients)))

    def result(self, seconds: float) -> dict:
        after = [used for at, used in self.memory if at >= 60] or [used for _, used in self.memory]
        tail = after[-max(len(after) // 10, 1) :]
        return {
            "answers": self.done, "errors": len(self.errors), "first_errors": self.errors[:3],
            "other_than_alone": len(self.other), "others": self.other[:5], "tokens": self.tokens,
            "tokens_per_second": self.tokens / seconds, "first_token_median": statistics.median(self.first),
            "first_token_p99": statistics.quantiles(self.first, n=100)[98], "cached_share": self.cached / max(self.read, 1),
            "memory_after_a_minute": after[0], "memory_at_the_end": statistics.median(tail),
            "memory_growth": statistics.median(tail) / after[0] - 1, "memory_most": max(used for _, used in self.memory),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="nano-omni")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "load.json")
    options = parser.parse_args()
    answers, seconds = expected(options.model), options.minutes * 60
    with server(options.model) as (url, pid):
        run = Run(url, options.model, answers, seconds)
        began = time.monotonic()
        asyncio.run(run.go(options.clients, pid))
        found = run.result(time.monotonic() - began)
    told = {**describe(), "seed": SEED, "model": options.model, "clients": options.clients, "minutes": options.minutes, **found}
    with atomic_file(options.out) as path:
        path.write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps({name: value for name, value in told.items() if name != "others"}, indent=1, ensure_ascii=False))


if __name__ == "__main__":
    main()
