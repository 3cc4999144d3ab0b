"""What a key may still spend, and `/user/balance`. A key that was never credited has no limit.

An answer's price is known when it is over, so a balance can fall below 0 by what was at work; after that nothing is begun.
"""

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Request
from fastapi.concurrency import run_in_threadpool
from sqlalchemy import Connection, insert, select, update

from fourfold.server.prices import money
from fourfold.server.tables import BALANCES, Refused

router = APIRouter()


@dataclass(frozen=True)
class Balance:
    """What is left in one currency, in nano-units. Spending is taken from what was granted first."""

    currency: str
    granted: int
    topped_up: int

    @property
    def total(self) -> int:
        return self.granted + self.topped_up


def balances(connection: Connection, key_id: int) -> list[Balance]:
    """What a key has left in each currency; none where it has no limit."""
    rows = connection.execute(select(BALANCES).where(BALANCES.c.key_id == key_id).order_by(BALANCES.c.currency))
    return [_left(row.currency, row.granted, row.topped_up, row.spent) for row in rows]


def may_spend(left: list[Balance], currency: str) -> bool:
    """Whether something more may be begun at prices in a currency."""
    return not left or any(each.total > 0 for each in left if each.currency == currency)


def afford(connection: Connection, key_id: int | None, currency: str) -> None:
    """Refused (402) for a key that has nothing left."""
    if key_id is not None and not may_spend(balances(connection, key_id), currency):
        raise Refused(402, "insufficient_balance", f"balance: nothing left in {currency}; have the key credited")


def spend(connection: Connection, key_id: int | None, currency: str, amount: int) -> None:
    """Take nano-units from a key's balance, where it has one."""
    row = BALANCES.c.key_id == key_id, BALANCES.c.currency == currency
    connection.execute(update(BALANCES).where(*row).values(spent=BALANCES.c.spent + amount))


def credit(connection: Connection, key_id: int, currency: str, amount: int, granted: bool) -> None:
    """Add nano-units to a key's balance (a negative one corrects); the first one sets its limit."""
    column = BALANCES.c.granted if granted else BALANCES.c.topped_up
    row = BALANCES.c.key_id == key_id, BALANCES.c.currency == currency
    if not connection.execute(update(BALANCES).where(*row).values({column: column + amount})).rowcount:
        values = {"granted": 0, "topped_up": 0, "spent": 0} | {column.name: amount}
        connection.execute(insert(BALANCES).values(key_id=key_id, currency=currency, **values))


def published(left: list[Balance], currency: str) -> dict[str, Any]:
    """A balance in the public API's form; a key without a limit is available and has no amounts."""
    infos = [
        {
            "currency": each.currency,
            "total_balance": money(each.total),
            "granted_balance": money(each.granted),
            "topped_up_balance": money(each.topped_up),
        }
        for each in left
    ]
    return {"is_available": may_spend(left, currency), "balance_infos": infos}


@router.get("/user/balance")
async def user_balance(request: Request) -> dict[str, Any]:
    """The balance of the key that asks."""
    ledger, key = request.app.state.serving.ledger, getattr(request.state, "key", None)
    left = await run_in_threadpool(ledger.balances, key.id) if ledger and key else []
    return published(left, ledger.prices.currency if ledger else "USD")


def _left(currency: str, granted: int, topped_up: int, spent: int) -> Balance:
    from_granted = min(spent, max(granted, 0))
    return Balance(currency, granted - from_granted, topped_up - (spent - from_granted))
