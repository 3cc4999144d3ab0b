"""The databases that the ledger is tested on: a SQLite file, and a schema of its own in PostgreSQL."""

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

VARIABLE = "FOURFOLD_TEST_POSTGRES"  # the URL that `.ci/postgres start FOLDER` prints


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of an empty database."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'ledger.db'}"
        return
    server = os.environ.get(VARIABLE)
    if not server:
        said = f"{VARIABLE} names no PostgreSQL; `.ci/postgres start FOLDER` starts one"
        if os.environ.get("CI") == "true":
            pytest.fail(said)
        pytest.skip(said)
    schema, engine = f"test_{uuid.uuid4().hex}", create_engine(server.replace("postgresql://", "postgresql+psycopg://"))
    with engine.begin() as connection:
        connection.execute(text(f"CREATE SCHEMA {schema}"))
    yield f"{server}?options=-csearch_path%3D{schema}"
    with engine.begin() as connection:
        connection.execute(text(f"DROP SCHEMA {schema} CASCADE"))
    engine.dispose()
