"""Bits per byte of the bundled nano over the whole held-out split, with sparse and with dense attention, and figures of its runs.

python experiments/nano-first/evaluate.py       # writes result.json beside this file; --runs: all but the bits per byte
"""

import json
import platform
import statistics
import sys
import time
from pathlib import Path

import torch

import fourfold
from fourfold.data.corpus import Corpus
from fourfold.data.packing import PackedTokens
from fourfold.model.trace import Trace
from fourfold.training.metrics import bits_per_byte

HERE = Path(__file__).parent
ROWS = 8  # at once


def figures(metrics: Path) -> dict:
    """What docs/results.md says of a run, from its metrics."""
    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    stages = {row["stage"]: [r for r in rows if r["stage"] == row["stage"]] for row in rows}
    kl = [row["indexer_kl"] for row in rows if "indexer_kl" in row]
    return {
        "tokens": rows[-1]["tokens"],
        "steps": {stage: len(own) for stage, own in stages.items()},
        "median_tokens_per_second": {s: statistics.median(r["tokens_per_second"] for r in own) for s, own in stages.items()},
        "seconds_of_steps": round(sum(rows[0]["tokens"] / row["tokens_per_second"] for row in rows)),
        "indexer_kl_first_and_last": [kl[0], kl[-1]],
        "residual_gain_max_and_min": [max(r["residual_gain"] for r in rows), min(r["residual_gain_min"] for r in rows)],
    }


def main() -> None:
    runs = {name: figures(HERE / name / "metrics.jsonl") for name in (".", "indexer")}
    scores = json.loads((HERE / "result.json").read_text()) if "--runs" in sys.argv else evaluate()
    result = scores | {"runs": runs, "stream_mixing_diagonal": mixing_diagonal()}
    (HERE / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


@torch.inference_mode()
def mixing_diagonal() -> list[float]:
    """How much of a residual stream stays in it, mean at each site over a held-out row of each; 0.71 before training."""
    model, trace = fourfold.load("nano", dtype="float32"), Trace()
    rows = PackedTokens(Corpus.open("tiny-text"), model.tokenizer, 512, "held_out")
    model(rows.take(list(range(ROWS)))[0][:, :-1], trace=trace)
    sites = (mixing for layer in trace.layers for mixing in layer.stream_mixing)
    return [round(site.diagonal(dim1=-2, dim2=-1).mean().item(), 3) for site in sites]


def evaluate() -> dict:
    model = fourfold.load("nano", dtype="float32")
    rows = PackedTokens(Corpus.open("tiny-text"), model.tokenizer, 512, "held_out")
    sizes = torch.tensor([len(model.tokenizer.bytes_of(i)) for i in range(model.tokenizer.vocab_size)])
    result = {"date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "torch": torch.__version__, "rows": rows.rows}
    for selection in ("sparse", "dense"):
        batches = (rows.take(list(range(i, min(i + ROWS, rows.rows)))) for i in range(0, rows.rows, ROWS))
        result[selection] = bits_per_byte(model, batches, sizes, selection)
    return result


if __name__ == "__main__":
    main()
