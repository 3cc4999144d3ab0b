"""Charges: whole after any crash, never doubled, the same sums everywhere, on SQLite and on PostgreSQL."""

import multiprocessing
import random
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, text, update

from fourfold.errors import ConfigError
from fourfold.server.idempotency import Replay
from fourfold.server.ledger import Charge, Ledger
from fourfold.server.prices import amount_of
from fourfold.server.tables import CANCELLED, CHARGES, FAILED, FINISHED, OPEN, REPEATS, Refused, moment, now, reading, writing
from tests.server.crashing import opened, work
from tests.server.databases import database

__all__ = ["database"]


def rows(ledger: Ledger, table=CHARGES) -> list:
    with reading(ledger.database) as connection:
        return list(connection.execute(select(table).order_by(table.c.charge_id if table is REPEATS else table.c.id)))


def cost(row) -> int:
    return row.cached_cost + row.fresh_cost + row.output_cost


def begin(ledger: Ledger, key_id: int | None = None) -> Charge:
    charge = ledger.begin(key_id, "m", "/v1/x")
    assert isinstance(charge, Charge)
    return charge


def key(ledger: Ledger, name: str = "someone") -> int:
    found = ledger.find_key(ledger.add_key(name))
    assert found is not None
    return found.id


def test_a_charge_is_open_then_finished_and_stays(database: str) -> None:
    ledger = opened(database)
    charge = begin(ledger)
    (row,) = rows(ledger)
    assert (row.status, row.ended, row.hit, row.miss, row.output, cost(row)) == (OPEN, None, 0, 0, 0, 0)
    charged = charge.finish(1000, 100, 10)
    assert charged == charge.cost(1000, 100, 10) and charged.total == 2800 + 14000 + 2800
    ledger.close()
    (row,) = rows(opened(database))
    assert (row.status, row.hit, row.miss, row.output, row.model) == (FINISHED, 1000, 100, 10, "m")
    assert (row.cached_cost, row.fresh_cost, row.output_cost) == (2800, 14000, 2800)
    assert (row.currency, row.prices) == ("USD", ledger.prices.version) and row.started <= row.ended


def test_a_charge_is_closed_once(database: str) -> None:
    ledger = opened(database)
    someone = key(ledger)
    ledger.credit("someone", amount_of("1", "AMOUNT"))
    charge = begin(ledger, someone)
    charge.finish(1, 2, 3, CANCELLED)
    charge.finish(100, 200, 300)
    charge.known(7, 7)
    (row,) = rows(ledger)
    assert (row.status, row.hit, cost(row)) == (CANCELLED, 1, charge.cost(1, 2, 3).total)
    assert ledger.balances(someone)[0].total == 10**9 - cost(row)


def test_what_failed_is_on_record_and_costs_nothing(database: str) -> None:
    ledger = opened(database)
    assert begin(ledger).finish(5, 6, 7, FAILED).total == 0
    (row,) = rows(ledger)
    assert (row.status, row.hit, row.miss, row.output, cost(row)) == (FAILED, 5, 6, 7, 0)


def test_a_restart_closes_what_the_same_server_left_open(database: str) -> None:
    here, there = opened(database, server="here"), opened(database, server="there")
    known, unknown, elsewhere, done = begin(here), begin(here), begin(there), begin(here)
    known.known(11, 12, 13)
    done.finish(1, 1, 1)
    assert opened(database, server="here").recover() == 2
    assert {row.id: row.status for row in rows(here)} == {
        known.id: FAILED,
        unknown.id: FAILED,
        elsewhere.id: OPEN,
        done.id: FINISHED,
    }
    (row,) = [row for row in rows(here) if row.id == known.id]
    assert (row.hit, row.miss, row.output, cost(row)) == (11, 12, 13, 0)
    known.finish(1, 2, 3)  # it was alive after all: too late
    assert [row.status for row in rows(here)].count(FINISHED) == 1


def test_what_any_server_left_open_for_a_day_is_closed(database: str) -> None:
    ledger = opened(database, server="there")
    charge = begin(ledger)
    with writing(ledger.database) as connection:
        connection.execute(update(CHARGES).values(started=moment(now() - timedelta(hours=25))))
    assert opened(database, server="here").recover() == 1
    assert [row.status for row in rows(ledger)] == [FAILED] and charge.id == rows(ledger)[0].id


def test_many_threads_leave_a_sum_that_fits(database: str) -> None:
    ledger = opened(database)
    someone = key(ledger)
    ledger.credit("someone", amount_of("1", "AMOUNT"))

    def ask(number: int) -> int:
        return begin(ledger, someone).finish(number, number, number, FAILED if number % 5 == 0 else FINISHED).total

    with ThreadPoolExecutor(8) as pool:
        charged = list(pool.map(ask, range(40)))
    assert sum(charged) == sum(map(cost, rows(ledger))) > 0
    assert ledger.balances(someone)[0].total == 10**9 - sum(charged)


def test_servers_that_start_at_once_make_one_set_of_tables(database: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        ledgers = list(pool.map(opened, [database] * 4))
    for ledger in ledgers:
        begin(ledger).finish(1, 1, 1)
    assert len(rows(ledgers[0])) == 4


def test_a_database_that_went_away_is_said_with_503(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger.db")
    with writing(ledger.database) as connection:
        connection.execute(text("DROP TABLE repeats"))
        connection.execute(text("DROP TABLE charges"))
    with pytest.raises(Refused, match=r"^ledger: cannot be written \(no such table") as error:
        ledger.begin(None, "m", "/v1/x")
    assert (error.value.status, error.value.code) == (503, "ledger_unavailable")


@pytest.mark.parametrize("url", ["mysql://a:b@c/d", "sqlite://", "http://here", "sqlite:///:memory:", "://"])
def test_what_is_no_database(url: str) -> None:
    with pytest.raises(ConfigError, match="^ledger: is no database; write"):
        Ledger(url)


def test_places_that_cannot_be_opened_are_named(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database at all" * 100)
    with pytest.raises(ConfigError, match=r"text cannot be opened \(file is not a database\)"):
        Ledger(tmp_path / "text")
    with pytest.raises(ConfigError, match="cannot be written"):
        Ledger(tmp_path / "text" / "below")


def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    pytest.importorskip("psycopg")
    with pytest.raises(ConfigError, match="127.0.0.1:9") as error:
        Ledger("postgresql://me:secret-word@127.0.0.1:9/x")
    assert "secret-word" not in str(error.value) and "\n" not in str(error.value)


def test_the_file_is_for_its_owner_only(tmp_path: Path) -> None:
    opened(tmp_path / "deep" / "ledger.db")
    assert (tmp_path / "deep" / "ledger.db").stat().st_mode & 0o077 == 0


def killed(context, url: str, someone: int, first: int, chance: random.Random) -> list[tuple]:
    """Have a process charge from a request on, kill it at some moment, and return all that it said until then."""
    said, saying = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(url, someone, saying, first))
    process.start()
    saying.close()
    heard = [said.recv() for _ in range(chance.randrange(1, 25))]
    time.sleep(chance.random() * 0.02)
    process.kill()
    process.join()
    try:
        while True:
            heard.append(said.recv())
    except (EOFError, OSError):  # closed, perhaps within a word
        return heard


def check_whole(ledger: Ledger, someone: int, heard: list[tuple]) -> None:
    """Every charge that was finished is there whole, each request is charged once, and sums agree."""
    by_id = {row.id: row for row in rows(ledger)}
    assert {id for what, _, *id_ in heard if what == "begun" for id in id_} <= by_id.keys()
    for number, id in ((number, id_[0]) for what, number, *id_ in heard if what == "finished"):
        row, price = by_id[id], ledger.prices.cost("m", number, 2 * number, 3 * number, now())
        assert (row.status, row.hit, row.miss, row.output) == (FINISHED, number, 2 * number, 3 * number)
        assert (row.cached_cost, row.fresh_cost, row.output_cost) == (price.cached, price.fresh, price.output)
    kept = rows(ledger, REPEATS)
    finished = [id for id, row in by_id.items() if row.status == FINISHED]
    assert sorted(finished) == sorted(row.charge_id for row in kept if row.body is not None)
    assert all(row.body == row.idempotency_key.removeprefix("request ").encode() * 100 for row in kept if row.body is not None)
    assert all(cost(row) == 0 for row in by_id.values() if row.status != FINISHED)
    assert ledger.balances(someone)[0].total == amount_of("1000", "") - sum(map(cost, by_id.values()))


def crash(url: str, times: int, seed: int) -> None:
    ledger = opened(url, server="crashing")
    someone = key(ledger)
    ledger.credit("someone", amount_of("1000", ""))
    context, chance, heard = multiprocessing.get_context("forkserver"), random.Random(seed), []
    context.set_forkserver_preload(["tests.server.crashing"])
    for _ in range(times):
        again = max(0, max((number for _, number, *_ in heard), default=0) - 5)  # some that are done, and those that broke off
        heard += killed(context, url, someone, again, chance)
        check_whole(ledger, someone, heard)
    assert {what for what, *_ in heard} == {"begun", "finished", "replayed"}
    assert sum(what == "finished" for what, *_ in heard) > times
    ledger.recover()
    assert OPEN not in {row.status for row in rows(ledger)}
    check_whole(ledger, someone, heard)
    assert all(
        isinstance(ledger.begin(someone, "m", "/v1/x", f"request {n}", "same"), Replay)
        for what, n, *_ in heard
        if what == "finished"
    )


def test_a_server_is_killed(database: str) -> None:
    crash(database, 4, seed=1)


@pytest.mark.slow
def test_a_server_is_killed_a_hundred_times(database: str) -> None:
    crash(database, 100, seed=2)
