"""Metering through the whole server: what an answer says of its price is what the ledger has, whichever way it ends."""

import json
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fourfold.server.ledger import Ledger
from fourfold.server.prices import amount_of
from fourfold.server.tables import CANCELLED, FAILED, FINISHED, OPEN
from tests.server.conftest import Live
from tests.server.crashing import opened
from tests.server.test_ledger import cost, rows

CHAT = "/v1/chat/completions"
ASKED = {"model": "tiny", "messages": [{"role": "user", "content": "the cat"}]}
STREAMED = ASKED | {"stream": True, "stream_options": {"include_usage": True}}
Start = Callable[..., Live]


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return opened(tmp_path / "ledger.db")


def wait_for(ledger: Ledger, status: str) -> list:
    deadline = time.monotonic() + 30
    while not (found := rows(ledger)) or found[-1].status != status:
        assert time.monotonic() < deadline, f"the charge is {found and found[-1].status}, not {status}"
        time.sleep(0.02)
    return found


@pytest.mark.parametrize("asked", [ASKED, STREAMED], ids=["whole", "streamed"])
def test_the_price_said_is_the_price_charged(saying: Start, ledger: Ledger, asked: dict) -> None:
    answer = saying(ledger=ledger).post(CHAT, **asked)
    if "stream" in asked:
        *_, last, done = answer.text.strip().split("\n\n")
        usage = json.loads(last.removeprefix("data: "))["usage"]
        assert done == "data: [DONE]"
    else:
        usage = answer.json()["usage"]
    (row,) = rows(ledger)
    assert (row.status, row.model, row.endpoint, row.key_id) == (FINISHED, "tiny", CHAT, None)
    said = [usage[name] for name in ("prompt_cache_hit_tokens", "prompt_cache_miss_tokens", "completion_tokens")]
    assert [row.hit, row.miss, row.output] == said and row.miss > 0 < row.output
    assert usage["cost"] == cost(row) / 1e9 > 0 and usage["currency"] == row.currency == "USD"


@pytest.mark.parametrize("asked", [ASKED, STREAMED], ids=["whole", "streamed"])
def test_a_repeated_request_is_answered_twice_and_charged_once(saying: Start, ledger: Ledger, asked: dict) -> None:
    live, once = saying(ledger=ledger), {"Idempotency-Key": "once"}
    first, second = (live.http.post(CHAT, json=asked, headers=once) for _ in range(2))
    assert first.status_code == second.status_code == 200 and first.content == second.content
    assert first.headers["content-type"] == second.headers["content-type"]
    assert "idempotent-replayed" not in first.headers and second.headers["idempotent-replayed"] == "true"
    assert len(rows(ledger)) == len(live.engine.asked) == 1
    other = live.http.post(CHAT, json=asked | {"max_tokens": 1}, headers=once)
    assert other.status_code == 422 and other.json()["error"]["code"] == "idempotency_key_reused"
    live.post(CHAT, **asked)
    assert len(rows(ledger)) == len(live.engine.asked) == 2


def test_while_the_first_is_at_work_the_second_waits(saying: Start, ledger: Ledger) -> None:
    live, once = saying(ledger=ledger), {"Idempotency-Key": "once"}
    live.engine.steps = threading.Semaphore(0)
    asking = threading.Thread(target=live.http.post, args=(CHAT,), kwargs={"json": ASKED, "headers": once})
    asking.start()
    wait_for(ledger, OPEN)
    second = live.http.post(CHAT, json=ASKED, headers=once)
    assert second.status_code == 409 and second.json()["error"]["code"] == "request_in_flight"
    live.engine.steps.release(1000)
    asking.join(30)
    assert live.http.post(CHAT, json=ASKED, headers=once).headers["idempotent-replayed"] == "true"


def test_who_leaves_is_charged_for_what_was_made(saying: Start, ledger: Ledger) -> None:
    live = saying("word " * 100, ledger=ledger)
    live.engine.steps = threading.Semaphore(5)
    with live.http.stream("POST", CHAT, json=STREAMED) as answer:
        next(answer.iter_lines())
    live.engine.steps.release(1)
    (row,) = wait_for(ledger, CANCELLED)
    assert 0 < row.output <= 6 and cost(row) > 0


def test_what_is_refused_costs_nothing(saying: Start, ledger: Ledger) -> None:
    live = saying(ledger=ledger, most_waiting=0)
    assert live.post(CHAT, **ASKED).status_code == 429
    assert live.post(CHAT, **ASKED, colour="red").status_code == 400
    assert [(row.status, cost(row)) for row in rows(ledger)] in ([], [(FAILED, 0)])


def test_a_balance_is_spent_and_then_refused(saying: Start, ledger: Ledger) -> None:
    secret = ledger.add_key("ann")
    ledger.credit("ann", amount_of("0.000000001", "AMOUNT"))
    live, mine = saying(ledger=ledger), {"Authorization": f"Bearer {secret}"}
    assert live.http.get("/user/balance", headers=mine).json()["is_available"] is True
    assert live.http.post(CHAT, json=ASKED, headers=mine).status_code == 200
    refused = live.http.post(CHAT, json=ASKED, headers=mine)
    assert refused.status_code == 402 and refused.json()["error"]["code"] == "insufficient_balance"
    balance = live.http.get("/user/balance", headers=mine).json()
    assert balance["is_available"] is False and float(balance["balance_infos"][0]["total_balance"]) < 0
    (row,) = rows(ledger)
    assert row.key_id == 1
    said = live.http.get("/metrics", headers=mine).text
    assert 'fourfold_refused_total{reason="insufficient_balance",status="402"} 1.0' in said
    assert f'fourfold_output_tokens_total{{model="tiny"}} {float(row.output)}' in said
    assert f'fourfold_prompt_tokens_total{{cache="miss",model="tiny"}} {float(row.miss)}' in said


def test_a_restart_closes_what_was_open(saying: Start, ledger: Ledger) -> None:
    ledger.begin(None, "tiny", CHAT)
    saying(ledger=ledger)
    assert [row.status for row in rows(ledger)] == [FAILED]
