"""A study: arms times seeds, each one unit of work whose result is kept in a file of its own, and what they add up to.

A unit's file is `$FOURFOLD_HOME/studies/<study>/<arm>-seed<n>-<digest of its settings>.json`: units run in any order, a run that is
stopped loses nothing, and other settings never overwrite a result.
"""

import argparse
import hashlib
import json
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from experiments.lib.machine import describe
from fourfold.errors import FourfoldError
from fourfold.files import atomic_file
from fourfold.paths import home

if TYPE_CHECKING:
    from matplotlib.figure import Figure

HERE = Path(__file__).resolve().parent.parent
INTERRUPTED = 130  # exit status, as of a shell command stopped by Ctrl-C
Found = dict[str, dict[int, dict]]  # arm -> seed -> what `measure` returned


@dataclass(frozen=True)
class Unit:
    """One arm with one seed."""

    study: str
    arm: str
    seed: int
    settings: dict

    @property
    def stem(self) -> str:
        digest = hashlib.sha256(json.dumps(self.settings, sort_keys=True).encode()).hexdigest()[:8]
        return f"{self.arm}-seed{self.seed}-{digest}"

    @property
    def file(self) -> Path:
        return home() / "studies" / self.study / f"{self.stem}.json"

    @property
    def folder(self) -> Path:
        """A place for what the unit needs on its way."""
        return home() / "studies" / self.study / "runs" / self.stem

    def load(self) -> dict | None:
        """The kept result with its circumstances, None when there is none."""
        return json.loads(self.file.read_text()) if self.file.is_file() else None


class NotReadyError(FourfoldError):
    """A unit whose settings follow from another unit that has not run yet."""


class Study(ABC):
    """What a study overrides: its arms and sizes, what decides a unit, how it is measured, merged and drawn."""

    name: str
    tokens: int  # of a unit, by default
    seeds: tuple[int, ...] = (0, 1)
    arms: tuple[str, ...] = ()

    @abstractmethod
    def settings(self, arm: str, seed: int, tokens: int) -> dict:
        """All that decides the unit's result. Raises NotReadyError."""

    @abstractmethod
    def measure(self, unit: Unit, tokens: int) -> dict:
        """Do the work; may be stopped at any time, and goes on or starts over when called again."""

    @abstractmethod
    def merge(self, found: Found, tokens: int) -> dict:
        """The study's result from those units that there are."""

    @abstractmethod
    def draw(self, result: dict) -> "Figure":
        """The result as a picture."""

    @abstractmethod
    def table(self, result: dict) -> str:
        """The result as a markdown table."""

    def rank(self, arm: str, seed: int) -> int:
        """When the unit's turn comes among those of all studies: lower first."""
        return 10 + seed

    def is_alone(self, arm: str) -> bool:
        """Whether nothing may run beside the unit, because it measures time."""
        return False

    def seeds_of(self, arm: str, seeds: Sequence[int]) -> Sequence[int]:
        return seeds

    def known_arms(self) -> tuple[str, ...]:
        """The arms of which there may be results."""
        return self.arms

    def unit(self, arm: str, seed: int, tokens: int) -> Unit:
        return Unit(self.name, arm, seed, json.loads(json.dumps(self.settings(arm, seed, tokens))))

    def places(self, seeds: Sequence[int], only: Sequence[str] = ()) -> list[tuple[str, int]]:
        """(arm, seed) of every unit asked for, in the order in which they should run."""
        arms = only or self.arms
        pairs = [(arm, seed) for arm in arms for seed in self.seeds_of(arm, seeds)]
        return sorted(pairs, key=lambda pair: (self.rank(*pair), pair[1]))

    def run(self, unit: Unit, tokens: int, say: Callable[[str], None] = print) -> None:
        """Measure the unit and keep its result, unless that has been done."""
        if unit.file.is_file():
            return say(f"{self.name} {unit.arm} seed {unit.seed}: done before")
        began = time.monotonic()
        result = self.measure(unit, tokens)
        minutes = round((time.monotonic() - began) / 60, 2)
        kept = {"study": self.name, "arm": unit.arm, "seed": unit.seed, "minutes": minutes, "machine": describe()}
        with atomic_file(unit.file) as path:
            path.write_text(json.dumps(kept | {"settings": unit.settings, "result": result}) + "\n")
        say(f"{self.name} {unit.arm} seed {unit.seed}: {minutes} min")

    def kept(self, tokens: int, seeds: Sequence[int]) -> dict[tuple[str, int], dict]:
        """The files of all units made by these settings."""
        files = {}
        for arm, seed in self.places(seeds, self.known_arms()):
            try:
                content = self.unit(arm, seed, tokens).load()
            except NotReadyError:
                continue
            if content is not None:
                files[arm, seed] = content
        return files

    def summarise(self, tokens: int, seeds: Sequence[int], folder: Path | None = None) -> dict:
        """Write result.json and plot.png into the study's folder; returns the result. Raises FourfoldError without any unit."""
        files = self.kept(tokens, seeds)
        if not files:
            raise FourfoldError(f"{self.name}: no unit of these settings has been run; run some first")
        found: Found = {}
        for (arm, seed), content in files.items():
            found.setdefault(arm, {})[seed] = content["result"]
        machines = {json.dumps(content["machine"], sort_keys=True) for content in files.values()}
        about = {
            "study": self.name, "machines": [json.loads(machine) for machine in sorted(machines)], "tokens": tokens,
            "seeds": sorted({seed for _, seed in files}), "units": len(files),
            "minutes": round(sum(content["minutes"] for content in files.values()), 1),
        }  # fmt: skip
        result = about | self.merge(found, tokens)
        folder = folder or HERE / self.name
        with atomic_file(folder / "result.json") as path:
            path.write_text(json.dumps(result, indent=1) + "\n")
        self.draw(result).savefig(folder / "plot.png", dpi=100)
        return result

    def main(self, arguments: Sequence[str] | None = None) -> None:
        """The command of the study's run.py."""
        args = self.parser().parse_args(arguments)
        torch.set_num_threads(1)
        try:
            if not args.summarise:
                for arm, seed in self.places(args.seeds, args.only):
                    self.run(self.unit(arm, seed, args.tokens), args.tokens)
            if not args.no_summary:
                print(self.table(self.summarise(args.tokens, args.seeds, args.out)))
        except FourfoldError as error:
            sys.exit(f"error: {error}")
        except KeyboardInterrupt:
            sys.exit(INTERRUPTED)

    def parser(self) -> argparse.ArgumentParser:
        parser = argparse.ArgumentParser(description=sys.modules[type(self).__module__].__doc__)
        parser.add_argument("--seeds", type=int, nargs="+", default=list(self.seeds))
        parser.add_argument("--tokens", type=int, default=self.tokens, help="of one unit")
        parser.add_argument("--only", nargs="+", default=[], metavar="ARM", help="; ".join(self.arms))
        parser.add_argument("--summarise", action="store_true", help="run nothing, merge what there is")
        parser.add_argument("--no-summary", action="store_true", help="run only")
        parser.add_argument("--out", type=Path, help="folder for result.json and plot.png")
        return parser
