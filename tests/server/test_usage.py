"""What was used, added up: the same figures as table, CSV and JSON, on both databases."""

import csv
import io
import json
from datetime import UTC, date, datetime
from itertools import product

import pytest
import typer
from sqlalchemy import insert
from typer.testing import CliRunner

from fourfold.cli.ledger import usage
from fourfold.errors import ConfigError, FourfoldError
from fourfold.server.ledger import Ledger
from fourfold.server.prices import Cost, PriceTable, amount_of
from fourfold.server.tables import CANCELLED, CHARGES, FAILED, FINISHED, OPEN, writing
from fourfold.server.usage import add_up
from tests.server.crashing import opened
from tests.server.databases import database
from tests.server.test_ledger import key

__all__ = ["database"]

DAYS = ("2026-11-20", "2026-11-21", "2026-11-22")


@pytest.fixture
def filled(database: str) -> Ledger:
    """For each day, two keys and none, and two models: one finished, one cancelled, one failed, one open."""
    ledger, charges = opened(database), []
    owners = [None, key(ledger, "ann"), key(ledger, "bob")]
    for place, (day, owner, model) in enumerate(product(DAYS, owners, ("m", "n"))):
        price = cost(ledger, place)
        for status in (FINISHED, CANCELLED, FAILED, OPEN):
            time = "00:00:00.000000" if status == FINISHED else "23:59:59.999999"
            used = (0, 0, 0) if status == OPEN else (100 + place, 10, 1)
            costs = (price.cached, price.fresh, price.output) if status in (FINISHED, CANCELLED) else (0, 0, 0)
            values = {"key_id": owner, "model": model, "endpoint": "/v1/x", "server": "x", "status": status}
            values |= {"started": f"{day}T{time}+00:00", "currency": "USD", "prices": price.version}
            values |= dict(zip(("hit", "miss", "output", "cached_cost", "fresh_cost", "output_cost"), used + costs, strict=True))
            charges.append(values)
    with writing(ledger.database) as connection:
        connection.execute(insert(CHARGES), charges)
    return ledger


def cost(ledger: Ledger, place: int) -> Cost:
    return ledger.prices.cost("m", 100 + place, 10, 1, datetime(2026, 11, 20, tzinfo=UTC))


def test_every_group_adds_up_to_the_same(filled: Ledger) -> None:
    (total,) = add_up(filled.database, [])
    hits = 3 * sum(100 + place for place in range(18))
    assert (total["requests"], total["failed"], total["open"]) == (72, 18, 18)
    assert (total["hit_tokens"], total["miss_tokens"], total["output_tokens"]) == (hits, 540, 54)
    assert amount_of(total["cost"], "") == 2 * sum(cost(filled, place).total for place in range(18))
    for by in (["day"], ["key"], ["model"], ["model", "day"], ["day", "key", "model"]):
        rows = add_up(filled.database, by)
        assert rows == sorted(rows, key=lambda row: [row[name] for name in by])
        for name in ("requests", "failed", "open", "hit_tokens", "miss_tokens", "output_tokens"):
            assert sum(row[name] for row in rows) == total[name]
        assert sum(amount_of(row["cost"], "") for row in rows) == amount_of(total["cost"], "")


def test_groups_have_their_names(filled: Ledger) -> None:
    assert [row["key"] for row in add_up(filled.database, ["key"])] == ["", "ann", "bob"]
    assert [row["day"] for row in add_up(filled.database, ["day"])] == list(DAYS)
    (row, *others) = add_up(filled.database)
    assert (row["day"], row["key"], row["model"], row["currency"], row["requests"]) == (DAYS[0], "", "m", "USD", 4)
    assert len(others) == 17


def test_first_and_last_day_count(filled: Ledger) -> None:
    def days(since: str | None, until: str | None) -> list[str]:
        ends = [None if day is None else date.fromisoformat(day) for day in (since, until)]
        rows = add_up(filled.database, ["day"], *ends)
        assert all(row["requests"] == 24 for row in rows)
        return [row["day"] for row in rows]

    assert days(DAYS[1], None) == list(DAYS[1:]) and days(None, DAYS[1]) == list(DAYS[:2])
    assert days(DAYS[1], DAYS[1]) == [DAYS[1]] and days("2026-11-23", None) == []


def test_currencies_stay_apart(database: str) -> None:
    for currency in ("USD", "CNY"):
        ledger = Ledger(database, PriceTable.model_validate({"currency": currency, "models": PriceTable.free().models}))
        ledger.begin(None, "m", "/v1/x")
    assert [row["currency"] for row in add_up(ledger.database, [])] == ["CNY", "USD"]


def test_an_unknown_group_is_named(database: str) -> None:
    with pytest.raises(ConfigError, match="--by: colour"):
        add_up(opened(database).database, ["day", "colour"])


def run(*words: str) -> str:
    app = typer.Typer()
    app.command()(usage)
    result = CliRunner().invoke(app, words, env={"COLUMNS": "120"}, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_the_command_says_the_same_in_each_form(filled: Ledger, database: str) -> None:
    where = ("--ledger", database, "--since", DAYS[1], "--until", DAYS[1])
    rows = json.loads(run("--json", *where))
    assert rows == add_up(filled.database, since=date.fromisoformat(DAYS[1]), until=date.fromisoformat(DAYS[1]))
    read = list(csv.DictReader(io.StringIO(run("--csv", *where))))
    assert read == [{name: str(value) for name, value in row.items()} for row in rows]
    table = run(*where)
    for row in rows:
        line = next(
            line.split() for line in table.splitlines() if line.split()[:3] == [row["day"], row["key"] or "-", row["model"]]
        )
        assert line[3:] == [*(f"{row[name]:,}" for name in list(row)[3:9]), row["cost"], "USD"]
    (total,) = json.loads(run("--by", "total", "--json", *where))
    assert f"{total['cost']} USD" in table.splitlines()[-1]


def test_nothing_used_is_no_error(database: str) -> None:
    where = ("--ledger", database)
    assert json.loads(run("--json", *where)) == [] and run("--csv", *where).count("\n") == 1 and "requests" in run(*where)


def test_what_is_no_day(database: str) -> None:
    with pytest.raises(FourfoldError, match="^--since: yesterday is no day"):
        run("--ledger", database, "--since", "yesterday")
