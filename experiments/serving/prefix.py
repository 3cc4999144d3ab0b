"""Seconds to the first token of one prompt: without a prefix store, cold, from its memory, and from its disk. Writes prefix.json.

python experiments/serving/prefix.py [MODEL] [--tokens 4096] [--rounds 5]

Each round asks in turn, in one process: an engine without a store; one with an empty store, which keeps the pages; the same again,
which finds them in memory; and another engine on the same folder, whose pages were put out of the system's cache before. A sample
during which others used the processor is taken again, at most as often as there are rounds.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fourfold
from experiments.lib.machine import ForeignWatch, describe
from experiments.lib.timing import FOREIGN
from fourfold.data.corpus import Corpus
from fourfold.engine.engine import Engine
from fourfold.engine.request import Answer, Request
from fourfold.engine.sampler import Sampling
from fourfold.engine.store import PrefixStore
from fourfold.engine.store.digest import model_digest
from fourfold.files import atomic_file
from fourfold.model.transformer import Transformer

ARMS = ("no store", "cold", "memory", "disk")
BUDGET = 8 << 30  # of bytes in each tier: nothing is dropped
Samples = dict[str, list[float]]


def prompt_of(model: Transformer, tokens: int) -> list[int]:
    """The first tokens of tiny-text's held-out documents, one after the other."""
    ids: list[int] = []
    for document in Corpus.open("tiny-text").documents("held_out"):
        ids += model.tokenizer.encode(document.text or "")
        if len(ids) >= tokens:
            return ids[:tokens]
    raise SystemExit(f"tiny-text has {len(ids)} held-out tokens; ask for fewer with --tokens")


class Bench:
    """A model, its prompt, and what was measured: seconds by arm, clean and dropped ones, and what the pages take."""

    def __init__(self, model: Transformer, prompt: list[int]) -> None:
        self.model, self.prompt, self.digest = model, prompt, model_digest(model)
        self.clean: Samples = {arm: [] for arm in ARMS}
        self.dropped: Samples = {arm: [] for arm in ARMS}
        self.stored: dict[str, int] = {}

    def round(self) -> None:
        """Every arm once."""
        with Engine(self.model) as engine:
            first = self.sample("no store", engine, 0)
        with tempfile.TemporaryDirectory() as folder:
            with self.engine(folder) as (engine, store):
                answers = [self.sample("cold", engine, 0), self.sample("memory", engine, self.reused(store))]
            stats = store.stats()
            self.stored = {"pages": stats.disk_pages, "bytes": stats.disk_bytes}
            forget(Path(folder))
            with self.engine(folder) as (engine, store):
                answers.append(self.sample("disk", engine, self.reused(store)))
        if any(answer.tokens != first.tokens for answer in answers):
            raise SystemExit("the answers differ")

    @contextmanager
    def engine(self, folder: str) -> Iterator[tuple[Engine, PrefixStore]]:
        store = PrefixStore(self.digest, BUDGET, Path(folder), BUDGET)
        with Engine(self.model, store=store) as engine:
            yield engine, store
        store.close()

    def reused(self, store: PrefixStore) -> int:
        """How many tokens a whole hit gives."""
        return (len(self.prompt) - 1) // store.page * store.page

    def sample(self, arm: str, engine: Engine, reused: int) -> Answer:
        watch = ForeignWatch()
        watch.start()
        (answer,) = engine.generate([Request(self.prompt, Sampling(temperature=0, max_tokens=1))])
        foreign, usage = watch.stop(), answer.usage
        if usage.cached_tokens != reused:
            raise SystemExit(f"{arm}: {usage.cached_tokens} tokens were reused instead of {reused} ({usage.miss_reason})")
        clean = foreign is None or foreign <= FOREIGN
        (self.clean if clean else self.dropped)[arm].append(usage.first_token_seconds)
        return answer

    def summary(self) -> dict:
        """Medians, of the dropped samples too where none was clean."""
        kept = {arm: self.clean[arm] or self.dropped[arm] for arm in ARMS}
        cold = statistics.median(kept["no store"])
        return {
            arm: {
                "seconds": round(statistics.median(seconds), 4),
                "range": [round(min(seconds), 4), round(max(seconds), 4)],
                "sooner_than_without": round(cold / statistics.median(seconds), 2),
                "samples": len(self.clean[arm]),
                "dropped": len(self.dropped[arm]),
            }
            for arm, seconds in kept.items()
        }


def forget(folder: Path) -> None:
    """Put files out of the system's cache, so that reading them is reading the disk."""
    for path in folder.glob("??/*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="nano", help="name or folder")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    model = fourfold.load(options.model, dtype=options.dtype)
    bench = Bench(model, prompt_of(model, options.tokens))
    with Engine(model) as engine:  # what is built at the first use
        engine.generate([Request(bench.prompt[:64], Sampling(temperature=0, max_tokens=2))])
    for turn in range(2 * options.rounds):
        if all(len(seconds) >= options.rounds for seconds in bench.clean.values()):
            break
        bench.round()
        medians = ", ".join(f"{arm} {row['seconds']:.3f} s" for arm, row in bench.summary().items())
        print(f"round {turn + 1}: {medians}", flush=True)
    about = describe() | {"model": Path(options.model).name, "dtype": options.dtype, "tokens": options.tokens}
    with atomic_file(options.out) as partial:
        partial.write_text(json.dumps(about | {"stored": bench.stored, "arms": bench.summary()}, indent=1) + "\n", "utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
