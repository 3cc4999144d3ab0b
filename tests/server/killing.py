"""A whole server in a process of its own, which may be killed: from outside, or by itself at one line of the code that writes."""

import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import Any

import fourfold
from fourfold.server.opening import Server, open_app
from fourfold.server.settings import Settings

ROOT = str(Path(fourfold.__file__).parent)
PLACES = {"store": ("/disk.py", "/backlog.py"), "ledger": ("/ledger.py", "/tables.py", "/idempotency.py", "/balance.py")}
PRICES = '[models."*"]\ncached = 0.0028\nfresh = 0.14\noutput = 0.28\n'


@dataclass(frozen=True)
class Blow:
    """Kills the process at the `line`-th line that it runs in one of PLACES."""

    place: str
    line: int


def settings_in(folder: Path, **over: Any) -> Settings:
    """A store that is on disk alone and has to drop pages all the time, and prices."""
    prices = folder / "prices.toml"
    prices.write_text(PRICES)
    places: dict[str, Any] = {"store_folder": folder / "store", "ledger": f"sqlite:///{folder / 'ledger.db'}", "prices": prices}
    sizes: dict[str, Any] = {"store_bytes": 1, "store_disk_bytes": 800_000, "most_running": 4, "chunk_tokens": 64}
    return Settings(**places | sizes | over)


@contextmanager
def running(folder: Path, blow: Blow | None = None, **over: Any) -> Iterator[tuple[BaseProcess, str]]:
    """A server of the model in `folder`/tiny, and its address; killed at the end if it still lives."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    hear, said = context.Pipe(duplex=False)
    process = context.Process(target=serve, args=(folder, said, blow, over))
    process.start()
    said.close()
    try:
        yield process, f"http://127.0.0.1:{hear.recv()}"
    finally:
        process.kill()
        process.join()
        hear.close()


def serve(folder: Path, said: Connection, blow: Blow | None, over: dict[str, Any]) -> None:
    """What runs in that process; says the port once all is up."""
    settings = settings_in(folder, **over)
    if blow is not None:
        threading.settrace(_tracer(blow))  # for the threads that begin from here on: the store's, and those that write the ledger
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(open_app([str(folder / "tiny")], settings, fourfold.load), settings)
        said.send(listener.getsockname()[1])
        server.run(sockets=[listener])


def _tracer(blow: Blow) -> Any:
    left = blow.line

    def line(frame: FrameType, what: str, _: Any) -> Any:
        nonlocal left
        left -= what == "line"
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)
        return line

    def call(frame: FrameType, what: str, _: Any) -> Any:
        file = frame.f_code.co_filename
        return line if file.endswith(PLACES[blow.place]) and file.startswith(ROOT) else None

    return call
