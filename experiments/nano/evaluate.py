"""Every figure of a checkpoint's card: all evals, and samples that nobody chose. Writes result.json beside this file.

python experiments/nano/evaluate.py [MODEL] [--limit N] [--window TOKENS] [--out FILE]
"""

import argparse
import json
from pathlib import Path

import torch

import fourfold
from experiments.lib.machine import describe
from experiments.nano.samples import samples
from fourfold.data.corpus import file_checksum
from fourfold.evals.golden import WEIGHTS
from fourfold.evals.suite import TASKS, Options, run
from fourfold.files import atomic_file
from fourfold.formats import locate

SEED = 0  # of the bootstrap, the needles and the drawn replies


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="nano", help="name or folder")
    parser.add_argument("--limit", type=int, help="documents, questions, contexts or rows of each eval")
    parser.add_argument("--window", type=int, default=Options.window, help="tokens that perplexity reads at once")
    parser.add_argument("--only", nargs="+", choices=TASKS, help="leave the other evals as result.json has them")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    options = parser.parse_args()
    torch.set_num_threads(1)  # which decides the order of sums, and so the last bits
    model, weights = fourfold.load(options.model, dtype="float32"), locate(options.model) / WEIGHTS
    about = {**describe(), "seed": SEED, "model": Path(options.model).name, "weights_sha256": file_checksum(weights)}
    result = {**about, "dtype": "float32", "limit": options.limit, "tasks": {}}
    if options.only and options.out.is_file():
        before = json.loads(options.out.read_text("utf-8"))
        result["tasks"] = before["tasks"] if before["weights_sha256"] == about["weights_sha256"] else {}
    for task in options.only or ["all"]:
        result["tasks"] |= run(model, task, Options(limit=options.limit, window=options.window))
    result["samples"] = samples(model)
    with atomic_file(options.out) as partial:
        partial.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(options.out)


if __name__ == "__main__":
    main()
