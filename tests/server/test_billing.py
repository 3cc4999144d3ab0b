"""What requests leave in the ledger: whole, cut off, failed, sent twice."""

import asyncio
import json
import threading
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest
from sqlalchemy import select

from fourfold.engine.request import EngineBusy, Request
from fourfold.server.asking import submit
from fourfold.server.billing import Origin, open_bill
from fourfold.server.ledger import Ledger
from fourfold.server.prices import ModelRates, PriceTable, amount_of
from fourfold.server.tables import CHARGES
from tests.server.conftest import Live
from tests.server.test_doors import ASKED, CHAT, wait_for

PRICES = PriceTable(models={"*": ModelRates(cached=Decimal(1), fresh=Decimal(2), output=Decimal(4))})


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db", PRICES)


def charges(ledger: Ledger) -> list[tuple[str, int, int]]:
    """Of each charge: status, tokens of the prompt, tokens of the answer."""
    with ledger.database.connect() as connection:
        rows = connection.execute(select(CHARGES).order_by(CHARGES.c.id)).all()
    return [(row.status, row.hit + row.miss, row.output) for row in rows]


@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/v1/responses", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_every_api_is_charged(saying: Callable[..., Live], ledger: Ledger, path: str, stream: bool) -> None:
    live = saying("the cat sat", ledger=ledger)
    said = {"prompt": "dog"} if path == "/v1/completions" else {"input": "dog"} if path == "/v1/responses" else ASKED
    most = {"max_output_tokens": 9} if path == "/v1/responses" else {"max_tokens": 9}
    answer = live.post(path, **{"model": "tiny", **said, **most, "stream": stream})
    assert answer.status_code == 200, answer.text
    prompt = len(live.engine.asked[0].prompt)
    ((status, asked, made),) = charges(ledger)
    assert (status, asked) == ("finished", prompt) and made > 1


def test_the_price_is_in_the_answer(saying: Callable[..., Live], ledger: Ledger) -> None:
    live = saying("the cat sat", ledger=ledger)
    usage = live.post(CHAT, **ASKED).json()["usage"]
    assert usage["cost"] == pytest.approx((2 * usage["prompt_tokens"] + 4 * usage["completion_tokens"]) / 1e6)
    streamed = live.post(CHAT, **ASKED, stream=True, stream_options={"include_usage": True}).text
    assert json.loads(streamed.split("data: ")[-2])["usage"]["cost"] == usage["cost"]


def test_who_leaves_pays_for_what_was_made(saying: Callable[..., Live], ledger: Ledger) -> None:
    live = saying("word " * 50, ledger=ledger)
    live.engine.steps = threading.Semaphore(3)
    with live.http.stream("POST", CHAT, json=ASKED | {"stream": True}) as answer:
        next(answer.iter_lines())
        wait_for(lambda: [stream.usage.completion_tokens for stream in list(live.serving.live)] == [3])
    wait_for(lambda: charges(ledger)[0][0] != "open")
    assert charges(ledger) == [("cancelled", len(live.engine.asked[0].prompt), 3)]


def test_what_is_refused_or_breaks_costs_nothing(saying: Callable[..., Live], ledger: Ledger) -> None:
    def broken(request: object) -> str:
        raise RuntimeError("a fault")

    live = saying(broken, ledger=ledger)
    assert live.post(CHAT, **ASKED).status_code == 500
    assert "error" in live.post(CHAT, **ASKED, stream=True).text
    assert live.post(CHAT, **ASKED, frob=1).status_code == 400
    assert [status for status, *_ in charges(ledger)] == ["failed", "failed"]


@pytest.mark.parametrize("stream", [False, True])
def test_the_same_request_is_done_once(saying: Callable[..., Live], ledger: Ledger, stream: bool) -> None:
    live = saying(lambda request: f"answer {len(live.engine.asked)}", ledger=ledger)
    headers, body = {"idempotency-key": "one"}, ASKED | {"stream": stream}
    first, second = (live.http.post(CHAT, json=body, headers=headers) for _ in range(2))
    assert first.content == second.content
    assert second.headers["idempotent-replayed"] == "true" and second.headers["content-type"] == first.headers["content-type"]
    assert len(live.engine.asked) == len(charges(ledger)) == 1
    assert live.http.post(CHAT, json=body | {"n": 2}, headers=headers).status_code == 422
    assert live.http.post(CHAT, json=body, headers={"idempotency-key": "two"}).status_code == 200
    assert len(charges(ledger)) == 2


def test_keys_of_the_settings_repeat_only_their_own(saying: Callable[..., Live], ledger: Ledger) -> None:
    live = saying(lambda request: f"answer {len(live.engine.asked)}", ledger=ledger, api_keys=["a", "b"])
    said = []
    for key in ("a", "b", "a"):
        headers = {"idempotency-key": "one", "x-api-key": key}
        said.append(live.http.post(CHAT, json=ASKED, headers=headers).json()["choices"][0]["message"]["content"])
    assert said == ["answer 1", "answer 2", "answer 1"]


def test_a_prompt_is_on_record_while_its_answer_is_made(saying: Callable[..., Live], ledger: Ledger) -> None:
    live = saying("word " * 50, ledger=ledger)
    live.engine.steps = threading.Semaphore(1)
    with live.http.stream("POST", CHAT, json=ASKED | {"stream": True}) as answer:
        lines = answer.iter_lines()  # kept: one that nobody holds closes the stream
        next(lines)
        wait_for(lambda: charges(ledger) == [("open", len(live.engine.asked[0].prompt), 0)])


def test_who_leaves_while_the_ledger_writes_leaves_no_charge_open(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    began, go_on, begin = threading.Event(), threading.Event(), Ledger.begin

    def slow(self: Ledger, *asked: object) -> object:
        began.set()
        go_on.wait(10)
        return begin(self, *asked)  # type: ignore[arg-type]

    async def leave() -> None:
        task = asyncio.create_task(open_bill(ledger, Origin(CHAT, bills=[]), "tiny", 1))
        await asyncio.to_thread(began.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        go_on.set()
        await asyncio.to_thread(wait_for, lambda: [status for status, *_ in charges(ledger)] == ["failed"])

    monkeypatch.setattr(Ledger, "begin", slow)
    asyncio.run(leave())


def test_a_job_that_finds_no_room_leaves_no_charge_open(saying: Callable[..., Live], ledger: Ledger) -> None:
    live = saying(ledger=ledger, most_waiting=0)

    async def ask() -> None:
        with pytest.raises(EngineBusy):
            await submit(live.serving, live.serving.models.own()[0], [Request([1])], Origin("/v1/videos"))
        await asyncio.to_thread(wait_for, lambda: [status for status, *_ in charges(ledger)] == ["failed"])

    asyncio.run(ask())


def test_a_prompt_that_is_only_scored_costs_no_output(saying: Callable[..., Live], ledger: Ledger) -> None:
    live = saying("the cat sat", ledger=ledger)
    scored = {"model": "tiny", "prompt": "dog", "max_tokens": 0, "echo": True, "logprobs": 1}
    usage = live.post("/v1/completions", **scored).json()["usage"]
    assert usage["completion_tokens"] == 0 and usage["total_tokens"] == usage["prompt_tokens"]
    assert charges(ledger) == [("finished", usage["prompt_tokens"], 0)]


def test_nothing_left_is_402(saying: Callable[..., Live], ledger: Ledger) -> None:
    secret = ledger.add_key("ada")
    ledger.credit("ada", amount_of("0.00001", "AMOUNT"))
    live = saying("the cat sat", ledger=ledger)
    first, second = (live.http.post(CHAT, json=ASKED, headers={"x-api-key": secret}) for _ in range(2))
    assert first.status_code == 200 and second.status_code == 402
    assert second.json()["error"]["code"] == "insufficient_balance"
    balance = live.http.get("/user/balance", headers={"x-api-key": secret}).json()
    assert balance["is_available"] is False
