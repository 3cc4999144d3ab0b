"""Keys and balances: secrets that are nowhere kept, limits that hold, and the published form of a balance."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient
from hypothesis import given
from hypothesis import strategies as some
from typer.testing import CliRunner

from fourfold.cli.ledger import keys
from fourfold.errors import FourfoldError
from fourfold.server import balance
from fourfold.server.balance import published
from fourfold.server.keys import Key
from fourfold.server.ledger import Ledger
from fourfold.server.prices import PriceTable, amount_of
from fourfold.server.tables import CANCELLED, FAILED, KEYS, Refused
from tests.server.crashing import opened
from tests.server.databases import database
from tests.server.test_ledger import begin, key, rows

__all__ = ["database"]

UNIT = 10**9


def test_a_secret_finds_its_key_and_nothing_else_does(database: str) -> None:
    ledger = opened(database)
    assert not ledger.has_keys()
    one, two = ledger.add_key("one"), ledger.add_key("two")
    assert ledger.find_key(one) == Key(1, "one") and ledger.find_key(two) == Key(2, "two")
    mixed = one[:11] + two[11:]
    for wrong in ("", one[:-1], one + "x", one.upper(), one[:11], mixed, "ff-\0", "ünicode" * 10, f" {one}"):
        assert ledger.find_key(wrong) is None
    assert len({one, two}) == 2 and len(one.split("-", 2)[2]) == 43  # 256 bits


def test_a_secret_is_not_kept(tmp_path: Path) -> None:
    ledger = opened(tmp_path / "ledger.db")
    secret = ledger.add_key("one")
    ledger.close()
    kept = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"one" in kept and secret[:11].encode() in kept and secret[12:].encode() not in kept


def test_a_revoked_key_opens_nothing_and_leaves_no_open_server(database: str) -> None:
    ledger = opened(database)
    secret = ledger.add_key("one")
    ledger.revoke_key("one")
    (when,) = [row.revoked for row in rows(ledger, KEYS)]
    ledger.revoke_key("one")
    assert ledger.find_key(secret) is None and ledger.has_keys()
    assert [row.revoked for row in rows(ledger, KEYS)] == [when]  # the first time counts


@pytest.mark.parametrize("name", ["", "x" * 101, "a\nb", "a\0b"])
def test_what_is_no_name(database: str, name: str) -> None:
    with pytest.raises(FourfoldError, match="^NAME: "):
        opened(database).add_key(name)


def test_names_are_taken_for_good_and_have_to_be_known(database: str) -> None:
    ledger = opened(database)
    ledger.add_key("one")
    ledger.revoke_key("one")
    with pytest.raises(FourfoldError, match="called one; choose another"):
        ledger.add_key("one")
    for act in (ledger.revoke_key, lambda name: ledger.credit(name, 1)):
        with pytest.raises(FourfoldError, match="no key called two"):
            act("two")


def test_without_a_credit_there_is_no_limit(database: str) -> None:
    ledger = opened(database)
    someone = key(ledger)
    begin(ledger, someone).finish(10**9, 10**9, 10**9)
    begin(ledger, someone)
    assert ledger.balances(someone) == []
    ledger.credit("someone", UNIT)  # from now on there is one, and what was spent before does not count
    assert ledger.balances(someone)[0].total == UNIT


def test_nothing_left_is_refused_until_there_is_more(database: str) -> None:
    ledger = opened(database)
    someone, other = key(ledger), key(ledger, "other")
    ledger.credit("someone", UNIT)
    at_work = begin(ledger, someone)
    begin(ledger, someone).finish(0, 0, 5_000_000)  # 1.40
    assert ledger.balances(someone)[0].total == -UNIT * 4 // 10
    with pytest.raises(Refused, match="nothing left in USD") as error:
        begin(ledger, someone)
    assert (error.value.status, error.value.code) == (402, "insufficient_balance")
    at_work.finish(0, 0, 5_000_000, CANCELLED)  # what was begun is ended, and charged
    assert ledger.balances(someone)[0].total == -UNIT * 18 // 10
    begin(ledger, other), begin(ledger, None)
    ledger.credit("someone", UNIT * 18 // 10)
    with pytest.raises(Refused):
        begin(ledger, someone)  # 0 is nothing
    ledger.credit("someone", 1)
    begin(ledger, someone).finish(0, 0, 100, FAILED)
    assert ledger.balances(someone)[0].total == 1


def test_gifts_are_spent_first(database: str) -> None:
    ledger = opened(database)
    someone = key(ledger)
    ledger.credit("someone", 2 * UNIT)
    ledger.credit("someone", UNIT, granted=True)
    left = ledger.balances(someone)[0]
    assert (left.granted, left.topped_up) == (UNIT, 2 * UNIT)
    begin(ledger, someone).finish(0, 0, 5_000_000)
    left = ledger.balances(someone)[0]
    assert (left.granted, left.topped_up) == (0, 2 * UNIT - UNIT * 4 // 10)


def test_a_balance_in_another_currency_does_not_help(database: str) -> None:
    dollars = opened(database)
    someone = key(dollars)
    dollars.credit("someone", UNIT)
    yuan = Ledger(database, PriceTable.model_validate({"currency": "CNY", "models": PriceTable.free().models}))
    with pytest.raises(Refused, match="nothing left in CNY"):
        begin(yuan, someone)
    yuan.credit("someone", UNIT)
    begin(yuan, someone)
    assert [(each.currency, each.total) for each in yuan.balances(someone)] == [("CNY", UNIT), ("USD", UNIT)]


@given(some.lists(some.tuples(some.booleans(), some.integers(-(10**12), 10**12))), some.integers(0, 10**13))
def test_what_is_left_is_what_was_given_less_what_was_spent(credits: list[tuple[bool, int]], spent: int) -> None:
    granted, topped_up = (sum(amount for gift, amount in credits if gift is kind) for kind in (True, False))
    left = balance._left("USD", granted, topped_up, spent)
    assert left.total == granted + topped_up - spent
    assert left.granted >= min(granted, 0) and (left.granted <= 0 or left.topped_up == topped_up)


def client(ledger: Ledger | None, key: Key | None) -> TestClient:
    app = FastAPI()
    app.state.serving = SimpleNamespace(ledger=ledger)
    app.include_router(balance.router)

    @app.middleware("http")
    async def known(request: Request, go_on):
        request.state.key = key
        return await go_on(request)

    return TestClient(app)


def test_the_balance_over_http(database: str) -> None:
    ledger = opened(database)
    someone = ledger.find_key(ledger.add_key("someone"))
    assert someone is not None
    assert client(ledger, someone).get("/user/balance").json() == {"is_available": True, "balance_infos": []}
    ledger.credit("someone", amount_of("110", ""))
    ledger.credit("someone", amount_of("10", ""), granted=True)
    begin(ledger, someone.id).finish(1, 0, 0)
    info = {"currency": "USD", "total_balance": "119.999999997", "granted_balance": "9.999999997", "topped_up_balance": "110.00"}
    assert client(ledger, someone).get("/user/balance").json() == {"is_available": True, "balance_infos": [info]}
    ledger.credit("someone", amount_of("-120", ""))
    assert client(ledger, someone).get("/user/balance").json()["is_available"] is False


def test_where_no_key_is_needed_all_is_available() -> None:
    assert client(None, None).get("/user/balance").json() == published([], "USD") == {"is_available": True, "balance_infos": []}


def run(*words: str, code: int = 0) -> tuple[str, str]:
    result = CliRunner().invoke(keys, words)
    assert result.exit_code == code, result.output
    return result.stdout, result.stderr


def test_keys_from_the_command_line(database: str) -> None:
    where = ("--ledger", database)
    secret, said = run("add", "one", *where)
    assert opened(database).find_key(secret.strip()) == Key(1, "one") and "not kept" in said and secret.strip() not in said
    assert json.loads(run("add", "two", "--json", *where)[0]).keys() == {"name", "secret"}
    assert "one has 12.50 USD left" in run("credit", "one", "12.5", *where)[1]
    assert "one has 7.50 USD left" in run("credit", "one", "-5", *where)[1]
    run("revoke", "two", *where)
    one, two = json.loads(run("list", "--json", *where)[0])
    assert (one["name"], one["label"], one["revoked"], one["is_available"]) == ("one", secret[:11], None, True)
    assert one["balance_infos"][0]["total_balance"] == "7.50" and two["balance_infos"] == [] and two["revoked"]
    table = run("list", *where)[0]
    assert "7.50 USD" in table and "no limit" in table and "revoked" in table and secret[12:].strip() not in table
    with pytest.raises(FourfoldError, match="^AMOUNT: "):
        CliRunner().invoke(keys, ["credit", "one", "much", *where], catch_exceptions=False)


def test_ledger_and_prices_come_from_the_settings(tmp_path: Path) -> None:
    (tmp_path / "prices.toml").write_text('currency = "EUR"\n[models."*"]\ncached = 1\nfresh = 1\noutput = 1\n')
    (tmp_path / "server.toml").write_text(f'ledger = "sqlite:///{tmp_path}/its.db"\nprices = "{tmp_path}/prices.toml"\n')
    setup = ("--config", str(tmp_path / "server.toml"))
    run("add", "one", *setup)
    assert "3.00 EUR" in run("credit", "one", "3", "--granted", *setup)[1]
    assert opened(tmp_path / "its.db").has_keys()
