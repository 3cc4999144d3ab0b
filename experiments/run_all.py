"""All studies, unit by unit in order of importance, until the time is used up; what is missing then is done the next time.

python experiments/run_all.py --minutes 90

Units that measure time have the machine to themselves. All others run on one thread each, as many at once as there are cores: that
gives the same figures as one after another, because they follow from the seed and not from the clock. When the time is up, the
units that still run write a checkpoint, from which the next call goes on. Every study that has any result is summarised.
"""

import argparse
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from experiments.ablation.run import Ablation
from experiments.balance.run import Balance
from experiments.depth.run import Depth
from experiments.engram.run import EngramShare
from experiments.indexer.run import IndexerStudy
from experiments.lib.study import INTERRUPTED, NotReadyError, Study
from experiments.native.run import Native
from experiments.speed.run import Speed
from fourfold.errors import FourfoldError

HERE = Path(__file__).resolve().parent
PATIENCE = 60  # seconds in which a unit has to write its checkpoint


@dataclass(frozen=True)
class Job:
    """A unit to be run by a process of its own."""

    study: Study
    arm: str
    seed: int
    tokens: int

    @property
    def name(self) -> str:
        return f"{self.study.name} {self.arm} seed {self.seed}"

    @property
    def is_alone(self) -> bool:
        return self.study.is_alone(self.arm)

    def is_done(self) -> bool:
        try:
            return self.study.unit(self.arm, self.seed, self.tokens).file.is_file()
        except NotReadyError:
            return False

    def start(self) -> subprocess.Popen:
        command = [sys.executable, str(HERE / self.study.name / "run.py"), "--only", self.arm, "--seeds", str(self.seed)]
        command += ["--tokens", str(self.tokens), "--no-summary"]
        names = () if self.is_alone else ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        return subprocess.Popen(
            command, env=os.environ | dict.fromkeys(names, "1"), start_new_session=True
        )  # Ctrl-C reaches it through us alone


@dataclass
class Pool:
    """The processes at work, none of them past the deadline."""

    deadline: float
    running: list[tuple[Job, subprocess.Popen]] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def seconds_left(self) -> float:
        return self.deadline - time.monotonic()

    def wait_until_below(self, count: int) -> None:
        """Until fewer than `count` are at work, or the time is up."""
        while len(self.running) >= count and self.seconds_left > 0:
            time.sleep(0.2)
            self._collect()

    def stop(self) -> None:
        """Ask those at work to write what they have, and wait for that."""
        for _, process in self.running:
            process.send_signal(signal.SIGINT)
        for _, process in self.running:
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._collect()

    def _collect(self) -> None:
        ended = [(job, process) for job, process in self.running if process.poll() is not None]
        self.failed += [job.name for job, process in ended if process.returncode not in (0, INTERRUPTED)]
        self.running = [each for each in self.running if each not in ended]


def jobs(studies: list[Study], scale: float) -> list[Job]:
    """Every unit of the studies, those alone first, then the most important."""
    made = []
    for study in studies:
        tokens = study.tokens if study.name == "speed" else round(study.tokens * scale)
        made += [Job(study, arm, seed, tokens) for arm, seed in study.places(study.seeds)]
    return sorted(made, key=lambda job: (not job.is_alone, job.study.rank(job.arm, job.seed)))


def run(waiting: list[Job], workers: int, pool: Pool) -> None:
    """Start what is not done yet, as long as there is time."""
    try:
        for number, job in enumerate(waiting, 1):
            pool.wait_until_below(1 if job.is_alone or any(other.is_alone for other, _ in pool.running) else workers)
            if pool.seconds_left <= 0:
                break
            if not job.is_done():
                print(f"[{number}/{len(waiting)}, {pool.seconds_left / 60:.0f} min left] {job.name}", flush=True)
                pool.running.append((job, job.start()))
        pool.wait_until_below(1)
    except KeyboardInterrupt:
        print("stopping", flush=True)
    finally:
        pool.stop()


def main() -> None:
    studies: list[Study] = [Speed(), Ablation(), EngramShare(), Balance(), IndexerStudy(), Depth(), Native()]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=90.0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="units at once")
    parser.add_argument("--scale", type=float, default=1.0, help="of every study's tokens")
    parser.add_argument("--only", nargs="+", default=[], metavar="STUDY", help=", ".join(study.name for study in studies))
    args = parser.parse_args()
    chosen = [study for study in studies if not args.only or study.name in args.only]
    waiting, pool = jobs(chosen, args.scale), Pool(time.monotonic() + 60 * args.minutes)
    run(waiting, args.workers, pool)
    for study in chosen:
        tokens = next(job.tokens for job in waiting if job.study is study)
        try:
            print(f"\n## {study.name}\n\n{study.table(study.summarise(tokens, study.seeds))}")
        except FourfoldError as error:
            print(error)
    left = [job.name for job in waiting if not job.is_done()]
    print(f"\n{len(waiting) - len(left)} of {len(waiting)} units done" + (f"; next: {', '.join(left[:5])}" if left else ""))
    if pool.failed:
        sys.exit(f"error: failed: {', '.join(pool.failed)}; run one by itself to see why")


if __name__ == "__main__":
    main()
