"""The ledger: what every request used and costs.

A charge is written as open before work starts and closed when it is over, each in one transaction. So a crash leaves open rows, and
a restart closes them as failed with what was known: nothing is lost, doubled or half. Should the machine itself go down, what was
closed is on disk; a row that was only opened may be gone, which nobody has to pay.
"""

import platform
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from sqlalchemy import ColumnElement, and_, insert, or_, update
from sqlalchemy.exc import IntegrityError

from fourfold.server import balance, idempotency
from fourfold.server.idempotency import AnswerLimits, Repeatable, Replay, StoredAnswer, owner_of
from fourfold.server.keys import Keys
from fourfold.server.prices import Cost, PriceTable
from fourfold.server.tables import CHARGES, FAILED, FINISHED, OPEN, moment, now, open_database, writing


class Ledger(Keys):
    """Keys, charges and balances in one database. All calls are safe from any thread, and wait for the disk.

    url: `sqlite:///FILE`, a path, `postgresql://...`, or None for `$FOURFOLD_HOME/ledger.db`; server: the name of the one that
    works, the same after a restart and different between servers that share a database. Raises ConfigError when it cannot be
    opened; later calls raise Refused (503) when the database is away.
    """

    def __init__(
        self,
        url: str | Path | None = None,
        prices: PriceTable | None = None,
        server: str | None = None,
        answers: AnswerLimits | None = None,
    ) -> None:
        self.prices = prices or PriceTable.free()
        super().__init__(open_database(url), self.prices.currency)
        self.server = server or platform.node()
        self.answers = answers or AnswerLimits()

    def begin(
        self,
        key_id: int | None,
        model: str,
        endpoint: str,
        idempotency_key: str | None = None,
        request_digest: str | None = None,
        holder: str = "",
    ) -> "Charge | Replay":
        """Write that work on a request begins; or give the answer that the same request had before.

        holder: a name for who asks without a key of the ledger; each has Idempotency-Keys of their own.
        Raises Refused: 402 (nothing left to spend), 409 or 422 (see idempotency.py), 400 (no such Idempotency-Key can be).
        """
        asked = None if idempotency_key is None else Repeatable(key_id or owner_of(holder), idempotency_key, request_digest or "")
        charge = Charge(self, 0, key_id, model, endpoint, now(), asked is not None)
        try:
            return self._begin(charge, asked)
        except IntegrityError:  # the same Idempotency-Key came at the same moment, and now it is there
            return self._begin(charge, asked)

    def _begin(self, charge: "Charge", asked: Repeatable | None) -> "Charge | Replay":
        with writing(self.database, relaxed=True) as connection:
            if asked and (answer := idempotency.earlier(connection, asked, self.answers, charge.started)):
                return Replay(answer)
            balance.afford(connection, charge.key_id, self.prices.currency)
            values = {
                "key_id": charge.key_id,
                "model": charge.model,
                "endpoint": charge.endpoint,
                "server": self.server,
                "status": OPEN,
                "started": moment(charge.started),
                "currency": self.prices.currency,
                "prices": self.prices.version,
            }
            id = connection.execute(insert(CHARGES).values(**values)).inserted_primary_key[0]
            if asked:
                idempotency.point(connection, asked, id, charge.started)
        return replace(charge, id=id)

    def recover(self) -> int:
        """Close what an earlier run of this server left open, and what any server left for longer than a day; how many.

        To be called once when a server starts, by nothing else.
        """
        old = CHARGES.c.started < moment(now() - self.answers.age)
        left = and_(CHARGES.c.status == OPEN, or_(CHARGES.c.server == self.server, old))
        with writing(self.database) as connection:
            return connection.execute(update(CHARGES).where(left).values(status=FAILED, ended=moment(now()))).rowcount

    def end(self, charge: "Charge", tokens: tuple[int, int, int], status: str, answer: StoredAnswer | None) -> Cost:
        """Close a charge: see `Charge.finish`."""
        cost = charge.cost(*tokens) if status != FAILED else charge.cost(0, 0, 0)
        hit, miss, output = tokens
        used = {"hit": hit, "miss": miss, "output": output}
        costs = {"cached_cost": cost.cached, "fresh_cost": cost.fresh, "output_cost": cost.output}
        closed = {"status": status, "ended": moment(now()), **used, **costs}
        with writing(self.database) as connection:
            if connection.execute(update(CHARGES).where(charge.is_open()).values(**closed)).rowcount:
                balance.spend(connection, charge.key_id, cost.currency, cost.total)
                if charge.repeatable and status == FINISHED and answer:
                    idempotency.keep(connection, charge.id, answer, self.answers, now())
        return cost

    def close(self) -> None:
        self.database.dispose()


@dataclass(frozen=True)
class Charge:
    """A request at work. `started` settles whether it is charged at peak prices."""

    ledger: Ledger
    id: int
    key_id: int | None
    model: str
    endpoint: str
    started: datetime
    repeatable: bool

    def cost(self, hit: int, miss: int, output: int) -> Cost:
        """What it costs with these tokens: of the prompt, found in the prefix store and not, and made."""
        return self.ledger.prices.cost(self.model, hit, miss, output, self.started)

    def known(self, hit: int, miss: int, output: int = 0) -> None:
        """Write down the tokens so far: what a crash leaves on record."""
        with writing(self.ledger.database, relaxed=True) as connection:
            connection.execute(update(CHARGES).where(self.is_open()).values(hit=hit, miss=miss, output=output))

    def finish(self, hit: int, miss: int, output: int, status: str = FINISHED, answer: StoredAnswer | None = None) -> Cost:
        """Close it with the tokens used, and return what was charged. A charge that is closed already stays as it is.

        status: "finished"; "cancelled" (the client left: charged for what was made); "failed" (on record, but costs nothing).
        `answer` is kept for the next request with the same Idempotency-Key. To be called before the end of an answer is sent.
        """
        return self.ledger.end(self, (hit, miss, output), status, answer)

    def is_open(self) -> ColumnElement[bool]:
        return and_(CHARGES.c.id == self.id, CHARGES.c.status == OPEN)
