"""What was used: charges added up by day (in UTC), key and model, for people and for programs."""

import csv
import io
from collections.abc import Sequence
from datetime import date, timedelta
from typing import Any

from rich.table import Table
from sqlalchemy import Engine, RowMapping, case, func, select

from fourfold.errors import ConfigError
from fourfold.server.prices import money
from fourfold.server.tables import CHARGES, FAILED, KEYS, OPEN, reading

GROUPS = {
    "day": func.substr(CHARGES.c.started, 1, 10),
    "key": func.coalesce(KEYS.c.name, ""),
    "model": CHARGES.c.model,
}
SUMS = {
    "requests": func.count(),
    "failed": func.sum(case((CHARGES.c.status == FAILED, 1), else_=0)),
    "open": func.sum(case((CHARGES.c.status == OPEN, 1), else_=0)),
    "hit_tokens": func.sum(CHARGES.c.hit),
    "miss_tokens": func.sum(CHARGES.c.miss),
    "output_tokens": func.sum(CHARGES.c.output),
}
COST = func.sum(CHARGES.c.cached_cost + CHARGES.c.fresh_cost + CHARGES.c.output_cost)


def add_up(
    database: Engine, by: Sequence[str] = tuple(GROUPS), since: date | None = None, until: date | None = None
) -> list[dict[str, Any]]:
    """One row for each group and currency, in their order: the groups, the sums, currency, cost (text, in whole units).

    `since` and `until` are days in UTC, both included; requests count on the day they began. Key is empty where none was needed.
    Raises ConfigError for a group there is not.
    """
    if unknown := [name for name in by if name not in GROUPS]:
        raise ConfigError(f"--by: {unknown[0]} is not known; choose of {', '.join(GROUPS)}")
    columns = [value.label(name) for name, value in ({name: GROUPS[name] for name in by} | SUMS).items()]
    asked = select(*columns, CHARGES.c.currency, COST.label("cost")).select_from(CHARGES.outerjoin(KEYS))
    if since:
        asked = asked.where(CHARGES.c.started >= since.isoformat())
    if until:
        asked = asked.where(CHARGES.c.started < (until + timedelta(days=1)).isoformat())
    order = [*by, "currency"]  # by their labels: PostgreSQL takes two equal expressions with parameters for different ones
    with reading(database) as connection:
        rows = connection.execute(asked.group_by(*order).order_by(*order)).mappings().all()
    return [_plain(row) for row in rows]


def csv_of(rows: list[dict[str, Any]], by: Sequence[str]) -> str:
    """Rows as CSV with a header line."""
    out = io.StringIO()
    writer = csv.DictWriter(out, [*by, *SUMS, "currency", "cost"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


def table_of(rows: list[dict[str, Any]], totals: list[dict[str, Any]], by: Sequence[str]) -> Table:
    """Rows for people (hit, miss and output in tokens), and below them the total of each currency."""
    table = Table(box=None, header_style="bold")
    for name in by:
        table.add_column(name, overflow="fold", no_wrap=name == "day")
    for name in (*SUMS, "cost"):
        table.add_column(name.removesuffix("_tokens"), justify="right", overflow="fold")
    for row in rows:
        table.add_row(*(row[name] or "-" for name in by), *_figures(row))
    for row in totals if by else []:
        table.add_row("total", *[""] * (len(by) - 1), *_figures(row), style="bold")
    return table


def _figures(row: dict[str, Any]) -> list[str]:
    return [f"{row[name]:,}" for name in SUMS] + [f"{row['cost']} {row['currency']}"]


def _plain(row: RowMapping) -> dict[str, Any]:
    """Sums are Decimal in one database and int in another."""
    values = {name: int(value) if name in SUMS else value for name, value in row.items()}
    return values | {"cost": money(int(row["cost"]))}
