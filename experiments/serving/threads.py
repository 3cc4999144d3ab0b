"""Milliseconds of one forward over 1 to 512 tokens with 1, 2, ... threads. Writes threads.json.

python experiments/serving/threads.py [MODEL ...] [--rounds 15]

Decoding: one token each of 1, 2, 4, 8 and 16 sequences of 256 tokens. Reading: 64 and 512 tokens of one sequence. All numbers of
threads take turns, and medians count; what others used of the processor meanwhile is written beside them. The number of
multiply-adds from which a further thread gains is what `WORTH` in fourfold/engine/threads.py should be.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path

import torch

import fourfold
from experiments.lib.machine import ForeignWatch, describe
from fourfold.engine.pool import batch_of
from fourfold.files import atomic_file
from fourfold.model.transformer import Transformer
from fourfold.planner.count import count

SHAPES = [(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (1, 64), (1, 512)]  # sequences, and tokens of each
PAST = 256


@torch.inference_mode()
def milliseconds(model: Transformer, sequences: int, tokens: int, rounds: int, most: int) -> dict[int, float]:
    """The median of each number of threads."""
    cache = model.new_cache(sequences)
    model.streams(batch_of(model, [([7] * PAST, 0)] * sequences), cache)
    batch = batch_of(model, [([7] * tokens, PAST)] * sequences)
    found: dict[int, list[float]] = {threads: [] for threads in range(1, most + 1)}
    for _ in range(rounds):
        for threads, samples in found.items():
            torch.set_num_threads(threads)
            start = time.perf_counter()
            model.streams(batch, cache)
            samples.append((time.perf_counter() - start) * 1000)
            cache.truncate(PAST)
    return {threads: round(statistics.median(samples[1:]), 3) for threads, samples in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="*", default=["nano-omni"])
    parser.add_argument("--rounds", type=int, default=15)
    asked = parser.parse_args()
    most, result = len(os.sched_getaffinity(0)), {"machine": describe(), "rounds": asked.rounds, "models": {}}
    for name in asked.models:
        model, watch, rows = fourfold.load(name), ForeignWatch(), []
        active = count(model.config).active
        watch.start()
        for sequences, tokens in SHAPES:
            found = milliseconds(model, sequences, tokens, asked.rounds, most)
            rows.append({"sequences": sequences, "tokens": tokens, "work": sequences * tokens * active, "milliseconds": found})
            print(name, f"{sequences} x {tokens}", *(f"{threads}: {ms:.2f} ms" for threads, ms in found.items()))
        result["models"][name] = {"active": active, "foreign": watch.stop(), "forwards": rows}
    with atomic_file(Path(__file__).with_suffix(".json")) as file:
        file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
