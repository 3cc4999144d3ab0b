"""API keys: made, found, revoked, credited. A secret is shown once; what is kept is its SHA-256, as it has 256 random bits.

ff-1a2b3c4d-9xY...        label, which finds the key, and 43 characters that nobody can guess
"""

import hashlib
import hmac
import secrets
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine, Row, insert, select, update
from sqlalchemy.exc import IntegrityError

from fourfold.errors import FourfoldError
from fourfold.server.balance import Balance, balances, credit, published
from fourfold.server.tables import KEYS, moment, now, reading, writing


@dataclass(frozen=True)
class Key:
    """Who asks."""

    id: int
    name: str


class Keys:
    """The keys in a ledger's database, where prices are in one currency."""

    def __init__(self, database: Engine, currency: str) -> None:
        self.database, self.currency = database, currency

    def add_key(self, name: str) -> str:
        """Make a key and return its secret, which cannot be had again. Raises FourfoldError for a name that is taken."""
        if not 0 < len(name) <= 100 or not name.isprintable():
            raise FourfoldError(f"NAME: {name[:100]!r} is no name; give 1 to 100 printable characters")
        label = f"ff-{secrets.token_hex(4)}"
        secret = f"{label}-{secrets.token_urlsafe(32)}"
        values = {"name": name, "label": label, "digest": digest(secret), "created": moment(now())}
        try:
            with writing(self.database) as connection:
                connection.execute(insert(KEYS).values(**values))
        except IntegrityError:
            raise FourfoldError(f"NAME: there is (or was) a key called {name}; choose another name") from None
        return secret

    def find_key(self, secret: str) -> Key | None:
        """The key with a secret, unless it is unknown or revoked."""
        if not (secret.isascii() and secret.isprintable()):
            return None
        with reading(self.database) as connection:
            row = connection.execute(select(KEYS).where(KEYS.c.label == secret[:11])).one_or_none()
        if row is None or not hmac.compare_digest(row.digest, digest(secret)) or row.revoked:
            return None
        return Key(row.id, row.name)

    def has_keys(self) -> bool:
        """Whether a key was ever made: a server whose keys are all revoked is closed, not open."""
        with reading(self.database) as connection:
            return connection.execute(select(KEYS.c.id).limit(1)).first() is not None

    def revoke_key(self, name: str) -> None:
        """Have a key open nothing from now on. Raises FourfoldError for an unknown name."""
        with writing(self.database) as connection:
            row = _named(connection, name)
            connection.execute(update(KEYS).where(KEYS.c.id == row.id, KEYS.c.revoked.is_(None)).values(revoked=moment(now())))

    def credit(self, name: str, amount: int, granted: bool = False) -> None:
        """Add nano-units to a key's balance; from the first time on it has a limit. Raises FourfoldError for an unknown name."""
        with writing(self.database) as connection:
            credit(connection, _named(connection, name).id, self.currency, amount, granted)

    def balances(self, key_id: int) -> list[Balance]:
        """What a key has left in each currency; none where it has no limit."""
        with reading(self.database) as connection:
            return balances(connection, key_id)

    def list_keys(self) -> list[dict[str, Any]]:
        """All keys by age: name, label, created, revoked, and the balance in the public API's form."""
        with reading(self.database) as connection:
            return [
                {"name": row.name, "label": row.label, "created": row.created, "revoked": row.revoked}
                | published(balances(connection, row.id), self.currency)
                for row in connection.execute(select(KEYS).order_by(KEYS.c.id))
            ]


def digest(secret: str) -> str:
    """What is kept of a secret; it has 128 bits of chance in it or more, so a plain hash does."""
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()


def _named(connection: Connection, name: str) -> Row:
    row = connection.execute(select(KEYS).where(KEYS.c.name == name)).one_or_none()
    if row is None:
        raise FourfoldError(f"NAME: there is no key called {name}; `fourfold serve keys list` shows all")
    return row
