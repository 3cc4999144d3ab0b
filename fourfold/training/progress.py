"""What a person sees of a run: a bar with tokens/s and time left on a terminal, a plain line every few seconds elsewhere."""

import sys
import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

PLAIN_EVERY = 10.0  # seconds between plain lines


class Reporter:
    """Writes to stderr, so that stdout stays free for results."""

    def __init__(self, total: int) -> None:
        self.console, self.total = Console(stderr=True, soft_wrap=True, highlight=False), total
        self.bar: Progress | None = None
        self.began = self.last_line = 0.0
        self.first = 0

    def __enter__(self) -> Self:
        return self

    def start(self, done: int) -> None:
        """Begin counting at `done` steps."""
        self.began, self.first = time.monotonic(), done
        if self.console.is_terminal:
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=self.console)
            self.task = self.bar.add_task("starting", total=self.total, completed=done)
            self.bar.start()

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.bar is not None:
            self.bar.stop()

    def step(self, row: dict) -> None:
        """Show one step's metrics."""
        # the sum of all losses would jump from stage to stage
        kind = next(name for name in ("lm_loss", "indexer_kl", "loss") if name in row)
        said = f"{row['stage']} {kind} {row[kind]:.4f} {row['tokens_per_second']:,.0f} tok/s"
        if self.bar is not None:
            self.bar.update(self.task, completed=row["step"], description=said)
        elif time.monotonic() - self.last_line >= PLAIN_EVERY or row["step"] == self.total:
            self.last_line = time.monotonic()
            done = row["step"]
            left = (self.last_line - self.began) / max(done - self.first, 1) * (self.total - done)
            print(f"step {done}/{self.total} {said}, {left / 60:.1f} min left", file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """One line that stays."""
        self.console.print(line, markup=False)
