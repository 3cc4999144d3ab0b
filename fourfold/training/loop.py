"""The training loop: a recipe in, a run folder out, which can be stopped at any step and resumed bit for bit."""

import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from fourfold.errors import CheckpointError, ConfigError, FourfoldError
from fourfold.files import atomic_file, write_error
from fourfold.formats import ours
from fourfold.model.transformer import Transformer
from fourfold.training import checkpoint, recipes
from fourfold.training.card import model_card
from fourfold.training.compiled import compile_parts, undo_compilation
from fourfold.training.data import TrainingData
from fourfold.training.folders import description, read_json, run_folder, write_json
from fourfold.training.memory import keep_freed_memory
from fourfold.training.metrics import bits_per_byte, load_metrics, media_losses
from fourfold.training.objective import Outcome, accumulate, set_mode
from fourfold.training.optim import Optimizer
from fourfold.training.plots import draw_plots, read_metrics
from fourfold.training.progress import Reporter
from fourfold.training.recipes import Recipe, Stage
from fourfold.training.start import start_from, to_half

T = TypeVar("T")
DEAD = 0.5  # share of silent queries at which an indexer is called dead


@dataclass(frozen=True)
class Summary:
    """How a run ended; `model` is the folder to load, None when it was interrupted."""

    run: str
    model: str | None
    step: int
    steps: int
    tokens: int
    loss: float | None
    held_out_loss: float | None
    bits_per_byte: float | None
    tokens_per_second: float
    seconds: float
    interrupted: bool

    def to_dict(self) -> dict:
        return asdict(self)


def train(recipe: Recipe, out: Path | None = None, resume: bool = False, steps: int | None = None) -> Summary:
    """Train `recipe` into the folder `out` (default `$FOURFOLD_HOME/runs/<recipe>-<time>`), for at most `steps` steps in all.

    resume goes on from the newest whole checkpoint of `out` (or of the recipe's newest run) under the recipe written there.
    Raises FourfoldError when the folder is taken, a file is damaged, the disk is full, or the loss is no longer finite.
    """
    recipe = recipes.from_dict(recipes.to_dict(recipe))  # one that was made in Python is checked like any other
    folder = run_folder(recipe.name, out, resume)
    if resume:
        recipe = _written(folder / "recipe.json", recipe.name)
    return carry_out(Run, recipe, folder, resume, steps)


def carry_out(kind: Callable[[Any, Path, Reporter], "Run"], recipe: Any, folder: Path, resume: bool, steps: int | None) -> Summary:
    """Begin or resume a run of some kind in its folder, and step until its recipe is done, `steps` are, or a signal arrives."""
    total = recipe.steps if steps is None else min(steps, recipe.steps)
    keep_freed_memory()
    with threads(recipe.threads), Reporter(total) as reporter:
        run = kind(recipe, folder, reporter)
        run.restore() if resume else run.describe()
        if total < run.step:
            raise ConfigError(f"--steps {steps}: {folder} is at step {run.step} already; ask for more, or leave --steps out")
        reporter.start(run.step)
        with interrupts() as interrupted:
            return run.go(total, interrupted)


class Run:
    """A model, its optimiser and its data at some step of a recipe."""

    def __init__(self, recipe: Recipe, folder: Path, reporter: Reporter) -> None:
        self.recipe, self.folder, self.reporter = recipe, folder, reporter
        self.step = 0
        self.row: dict = {}
        self.said_dead: set[int] = set()
        self.data = TrainingData.open(recipe)
        if self.data.held_out is None:
            reporter.say(f"note: corpus {recipe.corpus} has no held_out split; the run is not evaluated")
        torch.manual_seed(recipe.seed)
        config = self.data.fit(recipe.model_config())
        self.model = Transformer(config, self.data.token_classes).init_weights(recipe.seed)
        if recipe.init and not checkpoint.steps_of(folder):  # a resumed run has its own weights
            start_from(self.model, recipe.init, recipe.blend)
        half = recipe.dtype == "bfloat16"
        if half:
            to_half(self.model)
        indexers = {name for name, _ in self.model.indexer_parameters()}
        self.optimizer = Optimizer(self.model, recipe.optimizer, indexers, torch.bfloat16 if half else torch.float32)
        self.mode: str | None = None
        made_of = {"recipe": recipes.to_dict(recipe), "model": config.to_flat()}
        self.made_of = json.loads(json.dumps(made_of))  # as it is read back
        self.digest = hashlib.sha256(json.dumps(made_of, sort_keys=True).encode()).hexdigest()
        self.compiled = recipe.compile
        if recipe.compile:
            compile_parts(self.model)

    def describe(self) -> None:
        """Write what the run is made of, before its first step."""
        write_json(self.folder / "recipe.json", self.made_of)
        write_json(self.folder / "run.json", description(self.data.checksums, self.recipe.seed, self.recipe.steps))

    def restore(self) -> None:
        """Go back to the newest whole checkpoint, and cut the metrics to it."""
        before = read_json(self.folder / "run.json", data=dict, threads=int)
        if read_json(self.folder / "recipe.json") != self.made_of:
            said = "its model is not what its recipe makes; put the file back as the run began with it, or start a new run"
            raise CheckpointError(f"{self.folder / 'recipe.json'}: {said}")
        if before["data"] != self.data.checksums:
            raise FourfoldError(f"{self.folder}: the corpus or tokenizer has changed since this run began; start a new run")
        if before["threads"] != (threads := torch.get_num_threads()):
            self.reporter.say(f"note: {before['threads']} threads before, {threads} now; results may differ in the last bits")
        checkpoint.clean(self.folder)
        found = checkpoint.steps_of(self.folder)
        for step in reversed(found):
            try:
                checkpoint.load(self.folder, step, self.model, self.optimizer, self.digest)
                self.step = step
                break
            except checkpoint.DamagedError as error:
                self.reporter.say(f"skipped {error}")
        if found and not self.step:
            raise CheckpointError(f"{self.folder}: no whole checkpoint is left; start a new run")
        self.reporter.say(f"resuming {self.folder} after step {self.step}")
        rows = [row for row in read_metrics(self.folder / "metrics.jsonl") if row["step"] <= self.step]
        with atomic_file(self.folder / "metrics.jsonl") as path:
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        self.row = rows[-1] if rows else {}

    def go(self, total: int, interrupted: list[int]) -> Summary:
        """Step until `total` steps are done or a signal has arrived; either way the folder can be resumed."""
        began, first = time.monotonic(), self.step
        while self.step < total and not interrupted:
            self.advance(total)
            every = self.recipe.checkpoint_every
            if self.step == total or interrupted or (every and self.step % every == 0):
                checkpoint.save(self.folder, self.step, self.model, self.optimizer, self.digest)
        seconds = time.monotonic() - began
        done = self.recipe.tokens_by(self.step) - self.recipe.tokens_by(first)
        stopped = self.step < total
        if not stopped:
            self.finish()
        return Summary(
            run=str(self.folder), model=None if stopped else str(self.folder / "model"), step=self.step, steps=total,
            tokens=self.recipe.tokens_by(self.step), loss=self.row.get("loss"),
            held_out_loss=self.row.get("held_out_loss"), bits_per_byte=self.row.get("held_out_bits_per_byte"),
            tokens_per_second=round(done / max(seconds, 1e-9), 1), seconds=round(seconds, 1), interrupted=stopped,
        )  # fmt: skip

    def advance(self, total: int) -> None:
        """One optimiser step, and its row of metrics."""
        began = time.monotonic()
        stage, lr = self.recipe.at(self.step)
        outcome = self._gradients(stage)
        norm, indexer_norm = self.optimizer.step(lr)
        self.step += 1
        self._require_finite("the loss or its gradient", outcome.terms["loss"] + norm + indexer_norm)
        self._balance_routers(stage, outcome)
        seconds = time.monotonic() - began
        self.row = {
            "step": self.step, "stage": stage.name, **outcome.terms, "lr": lr, "grad_norm": norm,
            "tokens": self.recipe.tokens_by(self.step),
            "tokens_per_second": round(math.prod(self.recipe.shape(stage)) / seconds, 1),
            **load_metrics([load.sum(0) for load in outcome.loads]), **outcome.gains,
        }  # fmt: skip
        if outcome.dead:
            self.row |= {"indexer_grad_norm": indexer_norm, "indexer_dead": max(outcome.dead), "dead_indexers": self._dead(outcome)}
        every = self.recipe.eval_every
        if self.step == total or (every and self.step % every == 0):
            selection = "dense" if stage.mode == "dense" and self.step < total else "sparse"
            if self.data.held_out is not None:
                held_out = self.evaluate(selection)
                self._require_finite("the held-out loss", held_out["loss"])
                self.row |= {"held_out_loss": held_out["loss"], "held_out_bits_per_byte": held_out["bits_per_byte"]}
            self.row |= {f"held_out_{kind}_loss": loss for kind, loss in self.evaluate_media(selection).items()}
        self.record()

    def record(self) -> None:
        """Add the step's row to the metrics, and show it."""
        try:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(self.row) + "\n")
        except OSError as error:
            raise write_error(self.folder / "metrics.jsonl", error) from None
        self.reporter.step(self.row)

    def _gradients(self, stage: Stage) -> Outcome:
        if self.mode != stage.mode:
            self.mode = stage.mode
            set_mode(self.model, stage.mode)
        recipe, rows = self.recipe, self.data.batch(self.step)
        wanted = (self.model, rows, stage.mode, recipe.mtp_weight, recipe.micro_batch_size, recipe.media)
        return self._guarded(lambda: accumulate(*wanted))

    def _guarded(self, work: Callable[[], T]) -> T:
        """What `work` returns; when it fails with compiled parts, they are undone and it is done once more without them."""
        try:
            return work()
        except Exception as error:
            if not self.compiled:
                raise
            reason = (str(error) or type(error).__name__).splitlines()[0]
            self.reporter.say(f"note: torch.compile failed ({reason}); going on without it")
            undo_compilation(self.model)
            self.compiled = False
            self.optimizer.zero_grad()
            return work()

    def _require_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            raise FourfoldError(f"step {self.step}: {what} is not finite; start again with a lower optimizer.lr")

    def _balance_routers(self, stage: Stage, outcome: Outcome) -> None:
        experts = self.model.config.experts
        if experts is None or experts.topk_method != "noaux_tc" or stage.mode == "indexer":
            return
        for router, load in zip(self.model.routers(), outcome.loads, strict=True):
            if router.balanced:  # not where the token decides
                router.balance(load, experts.bias_update_speed)

    def _dead(self, outcome: Outcome) -> list[int]:
        dead = {index for index, fraction in enumerate(outcome.dead) if fraction > DEAD}
        for index in sorted(dead - self.said_dead):
            said = f"warning: step {self.step}: indexer {index} is dead: its scores are exactly zero for"
            self.reporter.say(f"{said} {outcome.dead[index]:.0%} of the queries; use more index heads or a lower rate")
        self.said_dead |= dead
        return sorted(dead)

    def evaluate(self, selection: str) -> dict:
        """Held-out loss and bits per byte; the last figure of a run is for sparse selection, which is how its model is used."""
        rows, size = self.recipe.eval_rows, self.recipe.batch_size
        batches = [self.data.held_out.batch(i, size) for i in range(max(rows // size, 1))]
        return self._guarded(lambda: bits_per_byte(self.model, batches, self.data.token_bytes, selection))

    def evaluate_media(self, selection: str) -> dict[str, float]:
        """Held-out loss of each kind of place that rows with media teach; none for a run without them."""
        rows, size, held_out = self.recipe.eval_rows, self.recipe.batch_size, self.data.held_out_media
        if held_out is None:
            return {}
        batches = [held_out.batch(i, size) for i in range(max(rows // size, 1))]
        return self._guarded(lambda: media_losses(self.model, batches, selection))

    def finish(self) -> None:
        """Plots, and the model as a folder that `fourfold.load` reads, with the codec of what it draws inside."""
        draw_plots(self.folder)
        card = model_card(self.recipe, self.row, sum(p.numel() for p in self.model.parameters()))
        ours.save(self.model.eval(), self.folder / "model", self.data.tokenizer, card, codec=self.data.media.codec)


def _written(path: Path, name: str) -> Recipe:
    """The recipe that a run began with, which must be the one called `name`. Raises FourfoldError."""
    values = read_json(path, recipe=dict, model=dict)["recipe"]
    try:
        recipe = recipes.from_dict(values)
    except ConfigError as error:
        raise CheckpointError(f"{path}: {error}; put the recipe back that the run began with") from None
    if recipe.name != name:
        raise ConfigError(f"--resume {path.parent}: is a run of {recipe.name}, not {name}; name that recipe, or another folder")
    return recipe


@contextmanager
def threads(wanted: int) -> Iterator[None]:
    """At most `wanted` threads (0: no limit); a step on two threads crawls when another process has one of two cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(wanted or before, before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C or a termination adds to, so that the step at hand is finished; a second one breaks off at once."""
    received: list[int] = []

    def note(number: int, frame: object) -> None:
        if received:
            raise KeyboardInterrupt
        received.append(number)

    main = threading.current_thread() is threading.main_thread()  # others may not set handlers
    kinds = (signal.SIGINT, signal.SIGTERM) if main else ()
    before = [signal.signal(kind, note) for kind in kinds]
    try:
        yield received
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)
