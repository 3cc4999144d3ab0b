"""A progress bar (a line, where there is no terminal) that appears only when the work takes longer than two seconds."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress

T = TypeVar("T")
PATIENCE = 2.0  # seconds


def progress(
    items: Iterable[T], label: str, total: float | None = None, weigh: Callable[[T], float] = lambda item: 1
) -> Iterator[T]:
    """Yield `items`; after two seconds say so on standard error."""
    started, done = time.monotonic(), 0.0
    bar = task = None
    with ExitStack() as stack:
        for item in items:
            yield item
            done += weigh(item)
            if bar is None and time.monotonic() - started > PATIENCE:
                terminal = sys.stderr.isatty()
                bar = stack.enter_context(Progress(console=Console(stderr=True), transient=True, disable=not terminal))
                task = bar.add_task(label, total=total)
                if not terminal:
                    print(f"{label} ...", file=sys.stderr, flush=True)
            if bar is not None:
                bar.update(task, completed=done)
