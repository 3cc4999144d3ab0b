"""The ledger's database: its tables, and how it is opened.

Moments are text in UTC (`2026-11-22T15:05:15.123456+00:00`): readable, sorted by time, and the day is the first ten characters.
Money is whole nano-units (1e-9 of a currency).
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any

from sqlalchemy import (
    URL,
    BigInteger,
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    create_engine,
    event,
    make_url,
    text,
)
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError

from fourfold.errors import ConfigError, FourfoldError
from fourfold.paths import home

OPEN, FINISHED, CANCELLED, FAILED = "open", "finished", "cancelled", "failed"  # of a charge

# Writers to SQLite queue here: where the database is found locked they sleep and try again, and some would wait for seconds.
_TURN = Lock()

SCHEMA = MetaData()
_id = BigInteger().with_variant(Integer, "sqlite")  # SQLite counts up by itself for INTEGER only

# Who may ask. `label` begins the secret and is no secret; `digest` is SHA-256 of the whole, in hexadecimal.
KEYS = Table(
    "keys",
    SCHEMA,
    Column("id", _id, primary_key=True),
    Column("name", String(100), nullable=False, unique=True),
    Column("label", String(16), nullable=False, unique=True),
    Column("digest", String(64), nullable=False),
    Column("created", String(32), nullable=False),
    Column("revoked", String(32)),
)

# What a key may still spend: granted + topped_up - spent. A key without a row has no limit.
BALANCES = Table(
    "balances",
    SCHEMA,
    Column("key_id", ForeignKey("keys.id"), primary_key=True),
    Column("currency", String(3), primary_key=True),
    Column("granted", BigInteger, nullable=False),
    Column("topped_up", BigInteger, nullable=False),
    Column("spent", BigInteger, nullable=False),
)

# One row for each request: written as open before work starts. `server` is the one that works on it.
CHARGES = Table(
    "charges",
    SCHEMA,
    Column("id", _id, primary_key=True),
    Column("key_id", ForeignKey("keys.id")),
    Column("model", String(200), nullable=False),
    Column("endpoint", String(100), nullable=False),
    Column("server", String(200), nullable=False),
    Column("status", String(10), nullable=False),
    Column("started", String(32), nullable=False),
    Column("ended", String(32)),
    *(Column(name, BigInteger, nullable=False, default=0) for name in ("hit", "miss", "output")),  # tokens
    *(Column(name, BigInteger, nullable=False, default=0) for name in ("cached_cost", "fresh_cost", "output_cost")),
    Column("currency", String(3), nullable=False),
    Column("prices", String(64), nullable=False),  # version of the table
    Index("charges_by_time", "started"),
    Index("charges_by_state", "status", "server"),
)

# The newest charge of each Idempotency-Key, and the answer to repeat. `owner` is the id of a key, 0 where none is needed,
# and below 0 for keys of the settings.
REPEATS = Table(
    "repeats",
    SCHEMA,
    Column("owner", BigInteger, primary_key=True, autoincrement=False),
    Column("idempotency_key", String(255), primary_key=True),
    Column("request_digest", String(64), nullable=False),
    Column("charge_id", ForeignKey("charges.id"), nullable=False, unique=True),
    Column("created", String(32), nullable=False),
    Column("size", BigInteger, nullable=False, default=0),
    Column("code", Integer),
    Column("content_type", Text),
    Column("body", LargeBinary),
    Index("repeats_by_time", "created"),
)


def now() -> datetime:
    return datetime.now(UTC)


def moment(at: datetime) -> str:
    """A moment as the tables have it: of one width, in UTC."""
    return at.astimezone(UTC).isoformat(timespec="microseconds")


class Refused(FourfoldError):
    """What the ledger does not allow, or cannot do now; `status` and `code` say it in HTTP."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status, self.code = status, code


def open_database(url: str | Path | None) -> Engine:
    """Connect, and make the tables that are missing. A path, or None for `$FOURFOLD_HOME/ledger.db`, is a SQLite file.

    Raises ConfigError for what is no database, or one that cannot be reached.
    """
    try:
        where = _locate(url)
        engine = create_engine(where, pool_pre_ping=where.get_backend_name() != "sqlite")
        if engine.dialect.name == "sqlite":
            _prepare_sqlite(engine)
        with engine.begin() as connection:
            if engine.dialect.name == "postgresql":  # of two servers that start at once, one makes the tables
                connection.execute(text("SELECT pg_advisory_xact_lock(4)"))
            SCHEMA.create_all(connection)
    except ModuleNotFoundError as error:
        raise ConfigError(f"ledger: {error.name} is not installed; pip install 'psycopg[binary]'") from None
    except SQLAlchemyError as error:
        raise ConfigError(f"ledger: {where} cannot be opened ({_said(error)}); see that it is there and may be written") from None
    return engine


@contextmanager
def writing(engine: Engine, relaxed: bool = False) -> Iterator[Connection]:
    """A transaction that writes, undone by an exception; Refused with 503 when it cannot.

    When it is over it is on disk. A `relaxed` one outlives this process at once, the machine only with the next that is not.
    """
    turn = _TURN if engine.dialect.name == "sqlite" else nullcontext()
    try:
        with turn, engine.execution_options(relaxed=relaxed).begin() as connection:
            yield connection
    except OperationalError as error:
        raise Refused(503, "ledger_unavailable", f"ledger: cannot be written ({_said(error)}); try again later") from error


@contextmanager
def reading(engine: Engine) -> Iterator[Connection]:
    """A transaction that only reads, and waits for no writer. Refused with 503 when it cannot be."""
    try:
        with engine.execution_options(reads=True).connect() as connection:
            yield connection
    except OperationalError as error:
        raise Refused(503, "ledger_unavailable", f"ledger: cannot be read ({_said(error)}); try again later") from error


def _locate(url: str | Path | None) -> URL:
    """The database that is meant; a SQLite file is made where it is missing, for its owner's eyes only.

    Raises ConfigError for what is none, and for a place that cannot be written.
    """
    if url is None or isinstance(url, Path) or "://" not in url:
        url = f"sqlite:///{Path(url or home() / 'ledger.db').expanduser().absolute()}"
    try:
        where = make_url(url)
    except ArgumentError:
        where = URL.create("")
    if where.drivername in ("postgres", "postgresql", "postgresql+psycopg"):
        return where.set(drivername="postgresql+psycopg")
    if where.drivername != "sqlite" or where.database in (None, "", ":memory:"):  # one in memory would be gone with its connection
        raise ConfigError("ledger: is no database; write sqlite:///FILE or postgresql://USER@HOST/NAME")
    try:
        Path(where.database).parent.mkdir(parents=True, exist_ok=True)
        Path(where.database).touch(mode=0o600)
    except OSError as error:
        raise ConfigError(f"ledger: {where.database} cannot be written ({error.strerror}); name another file") from None
    return where


def _said(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).strip().splitlines()[0]


def _prepare_sqlite(engine: Engine) -> None:
    """Readers beside a writer (WAL), and writers that wait for each other from their first statement on."""

    @event.listens_for(engine, "connect")
    def settle(connection: Any, record: Any) -> None:
        connection.isolation_level = None  # the driver begins nothing by itself
        for pragma in ("busy_timeout=30000", "journal_mode=WAL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        options = connection.get_execution_options()
        connection.exec_driver_sql(f"PRAGMA synchronous={'NORMAL' if options.get('relaxed') else 'FULL'}")
        connection.exec_driver_sql("BEGIN" if options.get("reads") else "BEGIN IMMEDIATE")
