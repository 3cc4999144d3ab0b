"""`fourfold serve keys` and `fourfold serve usage`: who may ask, and what was asked."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from datetime import date

    from fourfold.server.ledger import Ledger

keys = typer.Typer(name="keys", help="Make, list, credit and revoke API keys.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="What the key is called.")]
Url = Annotated[
    str | None,
    typer.Option(
        "--ledger", metavar="URL", help="The ledger's database; by default as in --config, else $FOURFOLD_HOME/ledger.db."
    ),
]
Setup = Annotated[Path | None, typer.Option("--config", help="The server's settings, a TOML file: names ledger and prices.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@keys.command("add")
def add_key(name: Name, url: Url = None, settings: Setup = None, as_json: AsJson = False) -> None:
    """Make a key and print its secret, which is shown this once only."""
    secret = _open(url, settings).add_key(name)
    typer.echo(json.dumps({"name": name, "secret": secret}) if as_json else secret)
    typer.echo("The secret is not kept: store it now. Clients send it as `Authorization: Bearer SECRET`.", err=True)


@keys.command("list")
def list_keys(url: Url = None, settings: Setup = None, as_json: AsJson = False) -> None:
    """All keys: name, beginning of the secret, when made and revoked, and what is left to spend."""
    listed = _open(url, settings).list_keys()
    if as_json:
        return typer.echo(json.dumps(listed, indent=2))

    from rich.console import Console
    from rich.table import Table

    table = Table("name", "begins", "made", "state", "left", box=None, header_style="bold")
    for key in listed:
        state = "revoked" if key["revoked"] else "good"
        table.add_row(key["name"], key["label"], key["created"][:10], state, _amounts(key["balance_infos"]) or "no limit")
    Console().print(table)


@keys.command("revoke")
def revoke_key(name: Name, url: Url = None, settings: Setup = None) -> None:
    """Have a key open nothing from now on; what it used stays in the ledger."""
    _open(url, settings).revoke_key(name)
    typer.echo(f"{name} is revoked", err=True)


@keys.command("credit", context_settings={"ignore_unknown_options": True})
def credit_key(
    name: Name,
    amount: Annotated[
        str, typer.Argument(metavar="AMOUNT", help="In whole units of the price table's currency; below 0 corrects.")
    ],
    granted: Annotated[bool, typer.Option("--granted", help="As a gift, which is spent first.")] = False,
    url: Url = None,
    settings: Setup = None,
) -> None:
    """Add to what a key may spend. A key that was never credited has no limit."""
    from fourfold.server.prices import amount_of

    ledger = _open(url, settings)
    ledger.credit(name, amount_of(amount, "AMOUNT"), granted)
    left = next(key["balance_infos"] for key in ledger.list_keys() if key["name"] == name)
    typer.echo(f"{name} has {_amounts(left)} left", err=True)


def usage(
    by: Annotated[
        str, typer.Option(metavar="WORDS", help="What to add up by: of day, key and model, with commas between; or total.")
    ] = "day,key,model",
    since: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="The first day that counts, in UTC.")] = None,
    until: Annotated[str | None, typer.Option(metavar="YYYY-MM-DD", help="The last day that counts, in UTC.")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    as_json: AsJson = False,
    url: Url = None,
    settings: Setup = None,
) -> None:
    """Requests, tokens (of prompts found in the prefix store, of prompts not found, of answers) and what they cost."""
    from rich.console import Console

    from fourfold.server.usage import add_up, csv_of, table_of

    groups = [] if by == "total" else by.split(",")
    database = _open(url, settings).database
    between = _day(since, "--since"), _day(until, "--until")
    rows = add_up(database, groups, *between)
    if as_json:
        typer.echo(json.dumps(rows, indent=2, ensure_ascii=False))
    elif as_csv:
        typer.echo(csv_of(rows, groups), nl=False)
    else:
        Console().print(table_of(rows, add_up(database, [], *between), groups))


def _open(url: str | None, file: Path | None) -> "Ledger":
    from fourfold.server.ledger import Ledger
    from fourfold.server.prices import PriceTable
    from fourfold.server.settings import read_settings

    settings = read_settings(file, ledger=url)
    return Ledger(settings.ledger, PriceTable.load(settings.prices))


def _day(text: str | None, option: str) -> "date | None":
    from datetime import date

    from fourfold.errors import FourfoldError

    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError:
        raise FourfoldError(f"{option}: {text} is no day; write one such as 2026-11-22") from None


def _amounts(left: list[dict[str, str]]) -> str:
    return ", ".join(f"{each['total_balance']} {each['currency']}" for each in left)
