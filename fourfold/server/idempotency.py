"""A request that is sent twice under one Idempotency-Key is done and charged once: the second gets the first one's answer.

While the first is at work the second is refused (409), as is one whose answer was too large to keep or has been dropped since. The
same key over another request is a mistake (422). What failed or was cut off may be tried again: then only the last try is charged.
"""

import hashlib
from dataclasses import dataclass
from datetime import datetime, timedelta

from fastapi import Response
from sqlalchemy import Connection, Row, delete, func, insert, select, update

from fourfold.server.balance import spend
from fourfold.server.tables import CANCELLED, CHARGES, FINISHED, OPEN, REPEATS, Refused, moment

LONGEST = 255  # characters of an Idempotency-Key


@dataclass(frozen=True)
class StoredAnswer:
    """An HTTP answer as it was sent, whole: a JSON body, or all events of a stream."""

    code: int
    content_type: str
    body: bytes


@dataclass(frozen=True)
class Replay:
    """In place of a charge: the request was done before, and this was its answer."""

    answer: StoredAnswer


@dataclass(frozen=True)
class AnswerLimits:
    """Bytes of one answer and of all that are kept to be repeated, and for how long a key is remembered."""

    most_answer: int = 4 << 20
    most: int = 256 << 20
    age: timedelta = timedelta(hours=24)


@dataclass(frozen=True)
class Repeatable:
    """A request that may be sent twice: `owner` is the id of its API key or `owner_of`, `digest` that of what is asked.

    Raises Refused (400) for an Idempotency-Key that cannot be one.
    """

    owner: int
    key: str
    digest: str

    def __post_init__(self) -> None:
        if not 0 < len(self.key) <= LONGEST or not self.key.isprintable():
            raise Refused(400, "invalid_idempotency_key", f"Idempotency-Key: must be 1 to {LONGEST} printable characters")


def owner_of(holder: str) -> int:
    """A number below 0 for a holder who has no key in the ledger, 0 for nobody in particular."""
    return -int.from_bytes(hashlib.sha256(holder.encode()).digest()[:7], "big") - 1 if holder else 0


def request_digest(endpoint: str, body: bytes) -> str:
    """What tells one request from another: SHA-256 over where it goes and what it says."""
    return hashlib.sha256(endpoint.encode() + b"\0" + body).hexdigest()


class Recorder:
    """Keeps what a stream sends, up to a number of bytes."""

    def __init__(self, most: int = AnswerLimits.most_answer) -> None:
        self.most, self.size, self.chunks = most, 0, list[bytes]()

    def add(self, chunk: bytes) -> None:
        self.size += len(chunk)
        if self.size <= self.most:
            self.chunks.append(chunk)
        else:
            self.chunks.clear()

    def answer(self, code: int = 200, content_type: str = "text/event-stream; charset=utf-8") -> StoredAnswer | None:
        """All that was sent, or None where it was too much."""
        return StoredAnswer(code, content_type, b"".join(self.chunks)) if self.size <= self.most else None


def response_of(replay: Replay) -> Response:
    """The stored answer once more, marked as such."""
    answer = replay.answer
    headers = {"content-type": answer.content_type, "idempotent-replayed": "true", "cache-control": "no-store"}
    return Response(answer.body, answer.code, headers)


def earlier(connection: Connection, asked: Repeatable, limits: AnswerLimits, at: datetime) -> StoredAnswer | None:
    """The answer to an earlier request of the same key; or None where it is to be done (again), and nothing stands in the way.

    Raises Refused: 422 when that asked for something else, 409 while it is at work or where its answer was not kept.
    """
    mine = REPEATS.c.owner == asked.owner, REPEATS.c.idempotency_key == asked.key
    row = connection.execute(select(REPEATS).where(*mine).with_for_update()).one_or_none()
    if row is None:
        return None
    if row.created < moment(at - limits.age):
        _forget(connection, row)
        return None
    if row.request_digest != asked.digest:
        said = "Idempotency-Key: was used for another request; send the same body, or a key of its own"
        raise Refused(422, "idempotency_key_reused", said)
    # Read only now that the row is locked: another request may have moved it on while this one waited.
    charge = connection.execute(select(CHARGES).where(CHARGES.c.id == row.charge_id)).one()
    if charge.status == OPEN:
        raise Refused(409, "request_in_flight", "Idempotency-Key: the first request is still at work; try again later")
    if charge.status == FINISHED and row.body is None:
        said = "Idempotency-Key: the request was done and charged, but its answer was not kept; ask anew with another key"
        raise Refused(409, "answer_not_kept", said)
    if charge.status == FINISHED:
        return StoredAnswer(row.code, row.content_type, row.body)
    if charge.status == CANCELLED:
        _waive(connection, charge)
    _forget(connection, row)
    return None


def point(connection: Connection, asked: Repeatable, charge_id: int, at: datetime) -> None:
    """Have an Idempotency-Key stand for a charge, after `earlier`. IntegrityError when another request was there first."""
    values = {"owner": asked.owner, "idempotency_key": asked.key, "request_digest": asked.digest}
    connection.execute(insert(REPEATS).values(**values, charge_id=charge_id, created=moment(at)))


def keep(connection: Connection, charge_id: int, answer: StoredAnswer, limits: AnswerLimits, at: datetime) -> None:
    """Store an answer to be repeated, unless it is too large; drop what is too old, and the oldest of what is too much."""
    old = select(REPEATS.c.charge_id).where(REPEATS.c.created < moment(at - limits.age)).with_for_update(skip_locked=True)
    connection.execute(delete(REPEATS).where(REPEATS.c.charge_id.in_(old)))
    if (size := len(answer.body)) > limits.most_answer:
        return
    values = {"code": answer.code, "content_type": answer.content_type, "body": answer.body, "size": size}
    connection.execute(update(REPEATS).where(REPEATS.c.charge_id == charge_id).values(**values))
    _shrink(connection, limits.most)


def _forget(connection: Connection, row: Row) -> None:
    # This row and no other: one that came while `earlier` found none must not be removed.
    connection.execute(delete(REPEATS).where(REPEATS.c.charge_id == row.charge_id))


def _shrink(connection: Connection, most: int) -> None:
    """Drop bodies, oldest first, until the rest fits; the keys stay, so that nothing is done and charged again."""
    total = connection.execute(select(func.sum(REPEATS.c.size))).scalar() or 0
    stored = select(REPEATS.c.charge_id, REPEATS.c.size).where(REPEATS.c.size > 0).order_by(REPEATS.c.created)
    # What another server holds is its own to drop: waiting for each other could lock both.
    while total > most and (oldest := connection.execute(stored.limit(1).with_for_update(skip_locked=True)).one_or_none()):
        connection.execute(update(REPEATS).where(REPEATS.c.charge_id == oldest.charge_id).values(body=None, size=0))
        total -= oldest.size


def _waive(connection: Connection, charge: Row) -> None:
    """Take back what an attempt cost that was cut off, now that it is made again; its tokens stay on record."""
    nothing = {"cached_cost": 0, "fresh_cost": 0, "output_cost": 0}
    connection.execute(update(CHARGES).where(CHARGES.c.id == charge.id).values(**nothing))
    spend(connection, charge.key_id, charge.currency, -(charge.cached_cost + charge.fresh_cost + charge.output_cost))
