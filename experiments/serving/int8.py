"""What INT8 weights cost in perplexity, and how much smaller they are. Writes int8.json.

pip install gguf     # for SmolLM2, see experiments/nano/smollm2.py
python experiments/serving/int8.py [--documents 40] [--tokens 1024]

The same beginnings of held-out documents of tiny-text are read by nano, nano-omni and SmolLM2-135M-Instruct, in fp32 and with INT8
weights, and all tokens but the first mark are scored. Perplexity is over all tokens; the difference in nats per token is a mean over documents, which
is what its interval is of.
"""

import argparse
import json
import statistics
from pathlib import Path

import torch

import fourfold
from experiments.lib.machine import describe
from experiments.nano.smollm2 import ABOUT, SmolLM2
from fourfold.data.corpus import Corpus
from fourfold.evals.perplexity import Scored, Text, model_scorer, score, token_sizes
from fourfold.files import atomic_file
from fourfold.model.transformer import Transformer


def texts_of(model: Transformer, documents: int, tokens: int) -> list[Text]:
    """Beginnings of documents that lie evenly over the split."""
    sizes, every = token_sizes(model.tokenizer), list(Corpus.open("tiny-text").documents("held_out"))
    found = []
    for document in every[:: max(1, len(every) // documents)][:documents]:
        ids = torch.tensor([model.config.bos_token_id, *model.tokenizer.encode(document.text[: 8 * tokens])[: tokens - 1]])
        found.append(Text(document.id, document.source, ids, torch.where(torch.arange(len(ids)) == 0, 0, sizes[ids])))
    return found


def scored(name: str | Path, options: argparse.Namespace, **how: str) -> tuple[list[Scored], int]:
    """Each document by one form of the weights, and the bytes that these take."""
    model = fourfold.load(name, dtype="float32", **how)
    stored = {t.data_ptr(): t.nbytes for t in [*model.parameters(), *model.buffers()]}
    texts = texts_of(model, options.documents, options.tokens)
    return score(texts, model_scorer(model), options.tokens, label=" ".join((Path(name).stem, *how.values()))), sum(stored.values())


def compared(name: str | Path, options: argparse.Namespace) -> dict:
    (plain, size), (packed, packed_size) = scored(name, options), scored(name, options, weights="int8")
    apart = [(b.nats - a.nats) / a.tokens for a, b in zip(plain, packed, strict=True)]
    tokens = sum(each.tokens for each in plain)
    nats = {form: sum(each.nats for each in own) / tokens for form, own in (("float32", plain), ("int8", packed))}
    return {
        "documents": len(plain),
        "tokens": tokens,
        "perplexity": {form: torch.tensor(mean).exp().item() for form, mean in nats.items()},
        "nats_per_token_more": {
            "mean": statistics.mean(apart),
            "half_of_95_percent": 1.96 * statistics.stdev(apart) / len(apart) ** 0.5,
        },
        "megabytes": {"float32": round(size / 1e6, 1), "int8": round(packed_size / 1e6, 1)},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=1024, help="of each document, at most")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    told: dict = describe() | {name: compared(name, options) for name in ("nano", "nano-omni")}
    told |= {"SmolLM2": {"weights": ABOUT} | compared(SmolLM2().file, options)}
    with atomic_file(options.out) as path:
        path.write_text(json.dumps(told, indent=1) + "\n", "utf-8")
    print(json.dumps(told, indent=1))


if __name__ == "__main__":
    main()
