"""The command `fourfold`: its verbs, and how it ends.

Exit codes: 0 done, 2 something the user can put right (one line on stderr says what), 130 interrupted.
"""

import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fourfold import __version__
from fourfold.cli.bench import app as bench
from fourfold.cli.chat import chat
from fourfold.cli.convert import convert
from fourfold.cli.data import app as data
from fourfold.cli.eval import evaluate
from fourfold.cli.generate import InOrder, generate
from fourfold.cli.plan import plan
from fourfold.cli.serve import app as serve
from fourfold.cli.train import train
from fourfold.errors import FourfoldError


class _Verbs(TyperGroup):
    def invoke(self, ctx: Any) -> Any:
        """Run a verb; being interrupted, or a reader such as `head` that has seen enough, are ends like any other."""
        try:
            super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            raise typer.Exit(130) from None
        except BrokenPipeError:  # keep the interpreter from flushing to the closed pipe once more
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


app = typer.Typer(
    name="fourfold",
    cls=_Verbs,
    help="Define, count, train and talk to a V4-class model.",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(plan)
app.command()(train)
app.command()(chat)
app.command(cls=InOrder)(generate)
app.command("eval")(evaluate)
app.command()(convert)
app.add_typer(data, name="data")
app.add_typer(serve, name="serve")
app.add_typer(bench, name="bench")


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"fourfold {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Say which one.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: list[str] | None = None) -> int:
    """Run one command line and return its exit code; every foreseen failure is one line on stderr."""
    try:
        code = app(arguments, prog_name="fourfold", standalone_mode=False)
    except FourfoldError as error:
        message = str(error)
    except typer.TyperException as error:
        message = f"{error.format_message()} (--help shows the options)"
    else:
        return code if isinstance(code, int) else 0
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2
