"""The same request twice under one Idempotency-Key: done once, charged once, answered twice."""

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as some
from sqlalchemy import update

from fourfold.server.idempotency import AnswerLimits, Recorder, Replay, StoredAnswer, request_digest, response_of
from fourfold.server.ledger import Charge, Ledger
from fourfold.server.prices import amount_of
from fourfold.server.tables import CANCELLED, FAILED, FINISHED, OPEN, REPEATS, Refused, moment, now, writing
from tests.server.crashing import opened
from tests.server.databases import database
from tests.server.test_ledger import cost, key, rows

__all__ = ["database"]

ANSWER = StoredAnswer(200, "application/json", b'{"id": 1}')


def ask(ledger: Ledger, name: str = "once", digest: str = "same", key_id: int | None = None) -> Charge | Replay:
    return ledger.begin(key_id, "m", "/v1/x", name, digest)


def work(ledger: Ledger, *asked, **named) -> Charge:
    charge = ask(ledger, *asked, **named)
    assert isinstance(charge, Charge)
    return charge


def refused(ledger: Ledger, *asked, **named) -> tuple[int, str]:
    with pytest.raises(Refused) as error:
        ask(ledger, *asked, **named)
    return error.value.status, error.value.code


def test_the_second_waits_then_gets_the_answer_of_the_first(database: str) -> None:
    ledger = opened(database)
    charge = work(ledger)
    assert refused(ledger) == (409, "request_in_flight")
    charge.finish(1, 2, 3, answer=ANSWER)
    assert ask(ledger) == ask(opened(database)) == Replay(ANSWER)
    assert len(rows(ledger)) == 1


def test_another_request_under_the_same_key_is_a_mistake(database: str) -> None:
    ledger = opened(database)
    charge = work(ledger)
    assert refused(ledger, digest="other") == (422, "idempotency_key_reused")
    charge.finish(1, 2, 3, answer=ANSWER)
    assert refused(ledger, digest="other") == (422, "idempotency_key_reused")


def test_each_api_key_has_its_own(database: str) -> None:
    ledger = opened(database)
    one, two = key(ledger, "one"), key(ledger, "two")
    for key_id in (None, one, two):
        work(ledger, key_id=key_id).finish(1, 2, 3, answer=ANSWER)
        assert isinstance(ask(ledger, key_id=key_id), Replay)
    assert len(rows(ledger)) == 3


def test_without_one_every_request_is_charged(database: str) -> None:
    ledger = opened(database)
    for _ in range(2):
        charge = ledger.begin(None, "m", "/v1/x")
        assert isinstance(charge, Charge)
        charge.finish(1, 2, 3, answer=ANSWER)
    assert len(rows(ledger)) == 2 and not rows(ledger, REPEATS)


def test_what_failed_may_be_tried_again(database: str) -> None:
    ledger = opened(database)
    work(ledger).finish(1, 2, 3, FAILED, ANSWER)
    work(ledger)
    assert ledger.server != "" and opened(database, server=ledger.server).recover() == 1  # a crash is a failure too
    work(ledger).finish(1, 2, 3, answer=ANSWER)
    assert ask(ledger) == Replay(ANSWER)
    assert [row.status for row in rows(ledger)] == [FAILED, FAILED, FINISHED]


def test_of_attempts_that_were_cut_off_the_last_is_charged(database: str) -> None:
    ledger = opened(database)
    someone = key(ledger)
    ledger.credit("someone", amount_of("1", "AMOUNT"))
    for tokens in (100, 200):
        work(ledger, key_id=someone).finish(tokens, tokens, tokens, CANCELLED)
    first, second = rows(ledger)
    assert cost(first) == 0 and cost(second) > 0 and first.output == 100  # the work stays on record
    assert ledger.balances(someone)[0].total == 10**9 - cost(second)
    charged = work(ledger, key_id=someone).finish(300, 300, 300, answer=ANSWER)
    assert ledger.balances(someone)[0].total == 10**9 - charged.total
    assert isinstance(ask(ledger, key_id=someone), Replay)


def test_a_repeated_answer_needs_no_balance(database: str) -> None:
    ledger = opened(database)
    someone = key(ledger)
    ledger.credit("someone", 1)
    work(ledger, key_id=someone).finish(1000, 1000, 1000, answer=ANSWER)
    assert refused(ledger, "another", key_id=someone) == (402, "insufficient_balance")
    assert ask(ledger, key_id=someone) == Replay(ANSWER)


def test_a_large_answer_is_not_kept_but_charged_once(database: str) -> None:
    ledger = opened(database, answers=AnswerLimits(most_answer=len(ANSWER.body)))
    work(ledger, "fits").finish(1, 2, 3, answer=ANSWER)
    work(ledger, "large").finish(1, 2, 3, answer=StoredAnswer(200, "text/plain", ANSWER.body + b"x"))
    work(ledger, "none").finish(1, 2, 3)
    assert ask(ledger, "fits") == Replay(ANSWER)
    assert refused(ledger, "large") == refused(ledger, "none") == (409, "answer_not_kept")


def test_the_oldest_answers_make_room(database: str) -> None:
    size = len(ANSWER.body)
    ledger = opened(database, answers=AnswerLimits(most=3 * size))
    for number in range(5):
        work(ledger, f"{number}").finish(1, 2, 3, answer=ANSWER)
    assert [row.size for row in sorted(rows(ledger, REPEATS), key=lambda row: row.idempotency_key)] == [0, 0, size, size, size]
    assert refused(ledger, "1") == (409, "answer_not_kept") and isinstance(ask(ledger, "2"), Replay)


@pytest.mark.parametrize("end", [FINISHED, OPEN])
def test_after_a_day_a_key_is_forgotten(database: str, end: str) -> None:
    ledger = opened(database)
    charge = work(ledger)
    if end == FINISHED:
        charge.finish(1, 2, 3, answer=ANSWER)
    with writing(ledger.database) as connection:
        connection.execute(update(REPEATS).values(created=moment(now() - timedelta(hours=24, seconds=1))))
    work(ledger, digest="other")
    assert len(rows(ledger)) == 2 and len(rows(ledger, REPEATS)) == 1


def test_old_answers_are_dropped(database: str) -> None:
    ledger = opened(database)
    work(ledger, "old").finish(1, 2, 3, answer=ANSWER)
    with writing(ledger.database) as connection:
        connection.execute(update(REPEATS).values(created=moment(now() - timedelta(hours=25))))
    work(ledger, "new").finish(1, 2, 3, answer=ANSWER)
    assert [row.idempotency_key for row in rows(ledger, REPEATS)] == ["new"]


@pytest.mark.parametrize("name", ["", "x" * 256, "a\0b", "a\nb"])
def test_what_is_no_idempotency_key(database: str, name: str) -> None:
    assert refused(opened(database), name) == (400, "invalid_idempotency_key")


@pytest.mark.parametrize("end", [None, FAILED, CANCELLED])
def test_threads_that_repeat_one_request_charge_it_once(database: str, end: str | None) -> None:
    """From nothing, and after an attempt that may be repeated: of many at once one works, and the others are put off or repeat."""
    ledgers = [opened(database) for _ in range(2)]  # two servers
    someone = key(ledgers[0])
    ledgers[0].credit("someone", amount_of("1", "AMOUNT"))
    if end is not None:
        work(ledgers[0], key_id=someone).finish(9, 9, 9, end)

    def once(number: int) -> str:
        try:
            begun = ask(ledgers[number % 2], key_id=someone)
        except Refused as error:
            return error.code
        if isinstance(begun, Replay):
            return "replay" if begun.answer == ANSWER else "wrong"
        begun.finish(1, 2, 3, answer=ANSWER)
        return "charged"

    with ThreadPoolExecutor(12) as pool:
        came = list(pool.map(once, range(24)))
    assert came.count("charged") == 1 and set(came) <= {"charged", "replay", "request_in_flight"}
    assert once(0) == "replay"
    charged = [row for row in rows(ledgers[0]) if row.status == FINISHED]
    assert len(charged) == 1 and sum(map(cost, rows(ledgers[0]))) == cost(charged[0])
    assert ledgers[0].balances(someone)[0].total == 10**9 - cost(charged[0])


@given(some.lists(some.binary(max_size=20)), some.integers(0, 60))
def test_a_recorder_has_all_or_nothing(chunks: list[bytes], most: int) -> None:
    recorder, whole = Recorder(most), b"".join(chunks)
    for chunk in chunks:
        recorder.add(chunk)
    answer = recorder.answer()
    assert answer == (StoredAnswer(200, "text/event-stream; charset=utf-8", whole) if len(whole) <= most else None)
    assert sum(map(len, recorder.chunks)) <= most


def test_the_stored_answer_goes_out_as_it_was() -> None:
    response = response_of(Replay(StoredAnswer(201, "text/plain", b"said")))
    assert (response.status_code, response.body, response.headers["content-type"]) == (201, b"said", "text/plain")
    assert response.headers["idempotent-replayed"] == "true"


def test_requests_differ_by_where_they_go_and_what_they_say() -> None:
    digests = [request_digest(*asked) for asked in (("/a", b"b"), ("/a", b"c"), ("/", b"ab"), ("/ab", b""))]
    assert len(set(digests)) == 4 and request_digest("/a", b"b") == digests[0]
