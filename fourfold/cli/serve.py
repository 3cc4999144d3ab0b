"""`fourfold serve [MODEL ...]`: models behind an OpenAI-compatible API, with a page to talk to them; keys and usage beside it."""

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from fourfold.cli.ledger import keys, usage

BUNDLED = "nano-omni", "nano"  # what is served where nothing is named


class _Serve(TyperGroup):
    """A group whose first word is a model unless it is a verb."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, args if args and args[0] in self.commands else ["run", *args])


app = typer.Typer(cls=_Serve, help="Serve models over HTTP; `keys` and `usage` look after who asks.")
app.add_typer(keys)
app.command("usage")(usage)


@app.command()
def run(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Names or folders of checkpoints, or NAME=FOLDER; by default nano-omni and nano.", metavar="[MODEL]..."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen at; 127.0.0.1 is this machine alone.")] = None,
    port: Annotated[int | None, typer.Option(help="By default 8000; 0 takes any that is free.")] = None,
    api_keys: Annotated[
        list[str] | None, typer.Option("--api-keys", help="A key to be let in by; may be repeated. `keys add` makes better ones.")
    ] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file of settings; options go before it.")] = None,
    public_without_keys: Annotated[
        bool, typer.Option("--public-without-keys", help="Let other machines in although there are no keys.")
    ] = False,
    fetch: Annotated[bool, typer.Option("--fetch", help="Read pictures from http(s) addresses that requests name.")] = False,
    cors: Annotated[list[str] | None, typer.Option(help="An origin whose pages may call; may be repeated, * for all.")] = None,
    ledger: Annotated[str | None, typer.Option(help="Database of keys and usage, by URL; by default SQLite.")] = None,
    weights: Annotated[str | None, typer.Option(help="int8 keeps matrices as bytes: less memory, faster answers.")] = None,
    prices: Annotated[Path | None, typer.Option(help="Price table, TOML or JSON.")] = None,
) -> None:
    """Serve MODELs over HTTP: the OpenAI-compatible API at /v1, a page to talk to them at /.

    `fourfold serve keys` makes and revokes API keys, `fourfold serve usage` shows what was used. Ctrl-C lets answers in the making
    end first.
    """
    from functools import partial

    from fourfold.cli.generate import open_model
    from fourfold.errors import FourfoldError
    from fourfold.server.opening import Server, open_app
    from fourfold.server.settings import read_settings

    over = {"host": host, "port": port, "api_keys": api_keys, "cors": cors, "ledger": ledger, "prices": prices}
    flags = {"public_without_keys": public_without_keys or None, "fetch": fetch or None}
    settings = read_settings(config, **over, **flags)
    names = models if models else [] if settings.upstreams else list(BUNDLED)
    listener = _bound(settings.host, settings.port)
    try:
        server = Server(open_app(names, settings, partial(open_model, weights=weights)), settings)
        _greet(listener.getsockname()[1], settings, server.serving)
        server.run(sockets=[listener])
    finally:
        listener.close()
    if not server.started:
        raise FourfoldError("server: did not start; the lines above say why")


def _bound(host: str, port: int) -> Any:
    """A socket that listens. Raises ConfigError for an address that cannot be had."""
    import socket

    from fourfold.errors import ConfigError

    try:
        family, kind, _, _, address = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)  # who comes before all is up waits
    except OSError as error:
        raise ConfigError(f"port: cannot listen at {host}:{port} ({error.strerror}); choose another with --port") from None
    return listener


def _greet(port: int, settings: Any, serving: Any) -> None:
    """Say where the server is, and a line that works."""
    from fourfold.server.auth import needs_key

    names = serving.models.names()
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]", "": "127.0.0.1"}.get(settings.host, settings.host)
    where = f"http://{host if ':' not in host or '[' in host else f'[{host}]'}:{port}"
    key = " -H 'Authorization: Bearer KEY'" if needs_key(serving.settings, serving.ledger) else ""
    body = f'{{"model": "{names[0]}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    typer.echo(f"serving {', '.join(names)}\npage  {where}/\nAPI   {where}/v1\n")
    typer.echo(f"curl {where}/v1/chat/completions{key} -H 'Content-Type: application/json' \\\n  -d '{body}'\n")
