"""The experts' load on text that was trained on, beside that on held-out text in result.json. Writes loads.json beside this file.

python experiments/nano/loads.py [MODEL]
"""

import argparse
import json
from pathlib import Path

import torch

import fourfold
from experiments.lib.machine import describe
from fourfold.data.corpus import Corpus
from fourfold.evals.experts import experts
from fourfold.files import atomic_file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="nano", help="name or folder")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = fourfold.load(options.model, dtype="float32")
    found = {name: experts(model, Corpus.open(name), split="train") for name in ("tiny-text", "tiny-chat")}
    out = Path(__file__).parent / "loads.json"
    with atomic_file(out) as partial:
        partial.write_text(json.dumps(describe() | {"model": Path(options.model).name, **found}, indent=1) + "\n", "utf-8")
    print(out)


if __name__ == "__main__":
    main()
