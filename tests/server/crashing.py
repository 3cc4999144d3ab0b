"""A server's ledger in a process of its own, which is killed while it writes."""

from itertools import count
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Lock, Thread

from fourfold.server.idempotency import Replay, StoredAnswer
from fourfold.server.ledger import Ledger
from fourfold.server.prices import PriceTable

PRICES = {"models": {"*": {"cached": "0.0028", "fresh": "0.14", "output": "0.28"}}}


def opened(url: str | Path, **options) -> Ledger:
    return Ledger(url, PriceTable.model_validate(PRICES), **options)


def work(url: str, key_id: int, said: Connection, first: int) -> None:
    """Close what an earlier run left open, then charge requests from a number on until killed, saying what is begun and done."""
    ledger, lock, numbers = opened(url, server="crashing"), Lock(), count(first)
    ledger.recover()

    def tell(*what: object) -> None:
        with lock:
            said.send(what)

    def charge() -> None:
        while True:
            with lock:
                number = next(numbers)
            begun = ledger.begin(key_id, "m", "/v1/x", f"request {number}", "same")
            if isinstance(begun, Replay):
                tell("replayed", number)
                continue
            tell("begun", number, begun.id)
            begun.known(number, 2 * number)
            begun.finish(number, 2 * number, 3 * number, answer=StoredAnswer(200, "text/plain", f"{number}".encode() * 100))
            tell("finished", number, begun.id)

    for _ in range(2):
        Thread(target=charge, daemon=True).start()
    charge()
