"""`fourfold train RECIPE`: train a model from scratch into a run folder, or go on with a run."""

import json
from pathlib import Path
from typing import Annotated

import typer


def train(
    recipe: Annotated[str, typer.Argument(help="What to train: debug (a minute), micro, nano, nano-omni, nano-dense, codec ...")],
    steps: Annotated[int | None, typer.Option(min=1, help="Stop after this many steps in all.")] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; by default $FOURFOLD_HOME/runs/RECIPE-TIME.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the newest whole checkpoint of the run.")] = False,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a field: optimizer.lr=1e-3, model.hidden_size=128."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON object.")] = False,
) -> None:
    """Train RECIPE. Ctrl-C writes a checkpoint; --resume goes on from it as if nothing had happened."""
    from fourfold.errors import ConfigError  # torch is imported only when something is trained
    from fourfold.training import codec, loop, recipes

    if resume and settings:
        raise ConfigError("--set: a resumed run keeps its recipe.json; leave --set out, or start a new run without --resume")
    if recipe == codec.NAME:  # what draws pictures and clips; all others are language models
        summary = codec.train(codec.override(codec.CodecRecipe(), settings or []), out, resume, steps)
    else:
        summary = loop.train(recipes.override(recipes.recipe(recipe), settings or []), out, resume, steps)
    if as_json:
        typer.echo(json.dumps(summary.to_dict()))
    if summary.interrupted:
        typer.echo(f"stopped after step {summary.step}; go on with: fourfold train {recipe} --resume --out {summary.run}", err=True)
        raise typer.Exit(130)
    if not as_json:
        typer.echo(_spoken(summary))


def _spoken(summary) -> str:
    parts = [f"{summary.step} steps, {summary.tokens:,} tokens at {summary.tokens_per_second:,.0f} tok/s"]
    if summary.bits_per_byte is not None:
        parts.append(f"held-out loss {summary.held_out_loss:.4f}, {summary.bits_per_byte:.4f} bits per byte")
    return "; ".join(parts) + f"\nmodel: {summary.model}"
