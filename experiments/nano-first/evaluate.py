"""Bits per byte of the bundled nano over the whole held-out split, with sparse and with dense attention. Writes result.json.

    python experiments/nano-first/evaluate.py
"""

import json
import platform
import time
from pathlib import Path

import torch

import fourfold
from fourfold.data.corpus import Corpus
from fourfold.data.packing import PackedTokens
from fourfold.training.metrics import bits_per_byte

ROWS = 8  # at once


def main() -> None:
    model = fourfold.load("nano", dtype="float32")
    rows = PackedTokens(Corpus.open("tiny-text"), model.tokenizer, 512, "held_out")
    sizes = torch.tensor([len(model.tokenizer.bytes_of(i)) for i in range(model.tokenizer.vocab_size)])
    result = {"date": time.strftime("%Y-%m-%d"), "machine": platform.machine(), "torch": torch.__version__, "rows": rows.rows}
    for selection in ("sparse", "dense"):
        batches = (rows.take(list(range(i, min(i + ROWS, rows.rows)))) for i in range(0, rows.rows, ROWS))
        result[selection] = bits_per_byte(model, batches, sizes, selection)
    (Path(__file__).parent / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
