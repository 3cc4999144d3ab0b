"""A server that is killed at any moment, in generation and in the midst of what it writes, and started again on the same folders.

FOURFOLD_TEST_KILLS says how often (by default 20).
"""

import json
import os
import random
import sqlite3
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, count
from pathlib import Path
from threading import Event, Timer

import httpx
import pytest
from sqlalchemy import select

from fourfold.engine.engine import Engine
from fourfold.engine.request import Answer, Request
from fourfold.engine.sampler import Sampling
from fourfold.engine.store.pages import Name, unpacked
from fourfold.formats.ours import save
from fourfold.model.transformer import Transformer
from fourfold.server.ledger import Ledger
from fourfold.server.prices import PriceTable, amount_of
from fourfold.server.tables import CHARGES, FAILED, FINISHED, OPEN, REPEATS, reading
from tests.builders import random_tokens
from tests.server.killing import Blow, running, settings_in

KILLS = int(os.environ.get("FOURFOLD_TEST_KILLS", "20"))
CLIENTS, PROMPTS, TOKENS, GRANTED = 4, 6, 12, "1000"


@dataclass(frozen=True)
class Told:
    """What a client was told: a whole answer, and whether it had been given before."""

    text: str
    usage: dict
    replayed: bool


@dataclass
class World:
    """The folders of a server, and what its clients know.

    Question `n` is always the same, under an Idempotency-Key of its own; half of them find what others left in the store.
    """

    folder: Path
    secret: str
    prompts: list[tuple[list[int], Answer]]  # and what is answered to them cold
    asked: set[int] = field(default_factory=set)
    told: dict[int, Told] = field(default_factory=dict)
    replayed: set[int] = field(default_factory=set)
    hits: int = 0  # tokens that the store gave
    struck: Counter[str] = field(default_factory=Counter)  # kills by where they fell

    def ask(self, http: httpx.Client, n: int, tick: Callable[[], object] = lambda: None) -> None:
        """Stream question `n`, check what comes, and note it once it is whole; `tick` is called for every event.

        Raises HTTPError where the server dies.
        """
        prompt, cold = self.prompts[n % len(self.prompts)]
        body = {"model": "tiny", "prompt": prompt, "user_id": "all" if n % 2 else f"user-{n}"} | OPTIONS
        self.asked.add(n)
        headers = {"idempotency-key": f"question {n}"}
        with http.stream("POST", "/v1/completions", json=body, headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            lines = [(tick(), json.loads(line[6:]))[1] for line in answer.iter_lines() if line.startswith("data: {")]
        choices = [choice for line in lines for choice in line["choices"]]
        logprobs = [value for choice in choices for value in choice["logprobs"]["token_logprobs"]]
        told = Told("".join(choice["text"] for choice in choices), lines[-1]["usage"], "idempotent-replayed" in answer.headers)
        assert told.text == cold.text, "an answer differs from the one computed cold"
        assert logprobs == pytest.approx([chosen.logprob for chosen in cold.logprobs], abs=1e-3)
        assert told.replayed or n not in self.told, "what was answered is done again"
        assert n not in self.told or told.usage == self.told[n].usage
        self.told.setdefault(n, told)
        self.replayed |= {n} if told.replayed else set()
        self.hits += 0 if told.replayed else told.usage["prompt_cache_hit_tokens"]


OPTIONS = {"max_tokens": TOKENS, "temperature": 0, "logprobs": 0, "stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture
def world(speaker: Transformer, tmp_path: Path) -> World:
    save(speaker, tmp_path / "tiny", speaker.tokenizer)
    ledger = Ledger(settings_in(tmp_path).ledger, PriceTable.free())
    secret = ledger.add_key("someone")
    ledger.credit("someone", amount_of(GRANTED, ""))
    ledger.close()
    return World(tmp_path, secret, list(cold_answers(speaker)))


def cold_answers(model: Transformer) -> Iterator[tuple[list[int], Answer]]:
    """Prompts of which some share a beginning, and their greedy answers without a store, where no two tokens are nearly as good."""
    found, shared = 0, (random_tokens(150, seed=0) + 40).tolist()
    with Engine(model, threaded=False) as engine:
        for seed in count(1):
            tail = (random_tokens(40 + 31 * found, seed=seed) + 40).tolist()
            prompt = (shared if found % 3 else shared[::-1]) + tail
            answer = engine.generate([Request(prompt, Sampling(0, max_tokens=TOKENS), logprobs=2)])[0]
            if all(chosen.top[0][1] - chosen.top[1][1] > 0.01 for chosen in answer.logprobs):
                yield prompt, answer
                found += 1
            if found == PROMPTS:
                return


def client(world: World, url: str) -> httpx.Client:
    return httpx.Client(base_url=url, headers={"authorization": f"Bearer {world.secret}"}, timeout=120, trust_env=False)


def kill_once(world: World, draw: random.Random) -> None:
    """Have clients ask, first what they asked before, until the server is killed."""
    again = {*draw.sample(sorted(world.asked), min(len(world.asked), 3)), *(world.asked - world.told.keys())}
    numbers, over = chain(sorted(again), count(max(world.asked, default=-1) + 1)), Event()
    events = draw.randrange(1, 300)  # that are seen before it is killed from outside
    place = draw.choice(["any", "store", "ledger"])
    blow = None if place == "any" else Blow(place, draw.randrange(1, 400))

    def go_on() -> None:
        try:
            while not over.is_set():
                world.ask(http, next(numbers), tick)
        except httpx.HTTPError:
            over.set()

    def tick() -> None:
        nonlocal events
        events -= 1
        if blow is None and events <= 0:
            process.kill()

    with running(world.folder, blow) as (process, url), client(world, url) as http:
        timer = Timer(600, process.kill)
        timer.start()
        with ThreadPoolExecutor(CLIENTS) as pool:
            for done in [pool.submit(go_on) for _ in range(CLIENTS)]:
                done.result()
        process.join(10)
        assert not timer.finished.is_set(), f"{blow} did not kill the server"
        timer.cancel()
        assert process.exitcode == -9, "the server came to an end by itself"
        world.struck[place] += 1


def check_store(folder: Path) -> int:
    """Every page that is there is whole; how many."""
    files = list((folder / "store").glob("??/[0-9a-f]*-[0-9a-f]*"))
    for file in files:
        unpacked(Name(bytes.fromhex(file.name.partition("-")[0]), None), file.read_bytes())
    return len(files)


def check_ledger(world: World) -> None:
    """The database is sound; whatever was answered is charged once, as told; what was not costs nothing, and sums agree."""
    with sqlite3.connect(world.folder / "ledger.db") as plain:
        assert plain.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert not plain.execute("PRAGMA foreign_key_check").fetchall()
    plain.close()
    settings = settings_in(world.folder)
    ledger = Ledger(settings.ledger, PriceTable.load(settings.prices))
    with reading(ledger.database) as connection:
        charges = {row.id: row for row in connection.execute(select(CHARGES))}
        repeats = {int(row.idempotency_key.split()[1]): row for row in connection.execute(select(REPEATS))}
    assert repeats.keys() <= world.asked
    for n, told in world.told.items():
        row, usage = charges[repeats[n].charge_id], told.usage
        hit, miss = usage["prompt_cache_hit_tokens"], usage["prompt_cache_miss_tokens"]
        assert (row.status, row.hit, row.miss, row.output) == (FINISHED, hit, miss, usage["completion_tokens"])
    finished = [id for id, row in charges.items() if row.status == FINISHED]
    assert sorted(finished) == sorted(row.charge_id for row in repeats.values() if row.body is not None)
    costs = {id: row.cached_cost + row.fresh_cost + row.output_cost for id, row in charges.items()}
    assert all(costs[id] > 0 for id in finished) and {row.status for row in charges.values()} <= {FINISHED, FAILED, OPEN}
    assert sum(costs.values()) == sum(costs[id] for id in finished)
    assert ledger.balances(1)[0].total == amount_of(GRANTED, "") - sum(costs.values())
    ledger.close()


def damage(folder: Path) -> int:
    """Spoil every page in one of three ways; how many."""
    files = sorted((folder / "store").glob("??/[0-9a-f]*-[0-9a-f]*"))
    for i, file in enumerate(files):
        raw = bytearray(file.read_bytes())
        raw[len(raw) // 2] ^= 1
        file.write_bytes(raw if i % 3 == 0 else raw[: len(raw) // 2] if i % 3 == 1 else b"")
    return len(files)


@pytest.mark.slow
def test_a_server_killed_at_any_moment_goes_on_with_what_it_had(world: World) -> None:
    draw, pages = random.Random(KILLS), 0
    for _ in range(KILLS):
        kill_once(world, draw)
        pages += check_store(world.folder)
        check_ledger(world)
    assert pages and world.hits and world.replayed and len(world.struck) == 3, "this tests too little"
    print(f"{world.struck}: {len(world.asked)} questions, {len(world.told)} answered, {len(world.replayed)} given again")
    with running(world.folder) as (_, url), client(world, url) as http:
        for n in sorted(world.asked):  # what broke off is made up for; what was answered is not done again
            world.ask(http, n)
        check_ledger(world)
    assert world.asked == world.told.keys() and check_store(world.folder)
    check_damage(world)


def check_damage(world: World) -> None:
    """Pages that were spoilt are dropped, and what they held is computed and kept anew."""
    spoilt, first = damage(world.folder), max(world.asked) + 1
    with running(world.folder) as (_, url), client(world, url) as http:
        for n in range(first, first + 4 * PROMPTS):
            world.ask(http, n)
        figures = http.get("/metrics").text
    corrupt = [float(line.split()[1]) for line in figures.splitlines() if 'reason="corrupt"' in line]
    assert spoilt and corrupt and corrupt[0] > 0
    assert any(told.usage["prompt_cache_hit_tokens"] for n, told in world.told.items() if n >= first)
