"""`fourfold bench serve`: what servers and models do under load, side by side."""

import json
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

app = typer.Typer(help="Measure what runs.", no_args_is_help=True)


@app.callback()
def bench() -> None:
    """Measure what runs."""


@app.command()
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(help="Names that the server knows, or NAME@URL of another; by default its first.", metavar="[MODEL]..."),
    ] = None,
    url: Annotated[str, typer.Option(help="The server's API.")] = "http://127.0.0.1:8000/v1",
    clients: Annotated[int, typer.Option(min=1, help="How many ask at the same time.")] = 8,
    requests: Annotated[int, typer.Option(min=1, help="How many requests in all, to each model.")] = 32,
    prompt: Annotated[str, typer.Option(help="What each one asks; its number is put before it.")] = "Tell me about a cat.",
    shared: Annotated[int, typer.Option(min=0, help="Words that all prompts begin with, for the prefix store.")] = 0,
    max_tokens: Annotated[int, typer.Option(min=1, help="Of each answer.")] = 64,
    key: Annotated[str | None, typer.Option(envvar="FOURFOLD_API_KEY", help="API key.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One object, or a list for several models.")] = False,
) -> None:
    """Ask one or several models, each by so many clients at once, and print what they do side by side.

    Tokens a second are those of all answers over the time that all took. Ends with 1 where a request failed.
    """
    from rich.console import Console
    from rich.progress import Progress

    from fourfold.server.load import Load, measure, named, table

    load, figures = Load(clients, requests, prompt, shared, max_tokens), []
    errors = Console(stderr=True)
    with Progress(console=errors, transient=True, disable=not errors.is_terminal) as progress:
        for target in named(models or [], url, key):
            task = progress.add_task(target.model, total=requests)
            figures.append(measure(target, load, key, partial(progress.advance, task)))
    if as_json:
        told = [asdict(each) for each in figures]
        typer.echo(json.dumps(told[0] if len(told) == 1 else told))
    else:
        Console().print(table(figures))
    if any(each.errors for each in figures):
        raise typer.Exit(1)
