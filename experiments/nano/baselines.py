"""What nano's bits per byte stand beside: counting, and a published model of 135M parameters.

python experiments/nano/baselines.py ngram              # whole held-out split of tiny-text -> ngram.json
python experiments/nano/baselines.py smollm2 [MODEL]    # the beginnings of its documents, all three models -> smollm2.json

`ngram`: an interpolated 5-gram model with modified Kneser-Ney smoothing over nano's own tokens, counted on the whole train split
(nano reads part of it), each document after its <|bos|>. `smollm2`: see smollm2.py for how that model reads; all three are scored
on the same bytes.
"""

import argparse
import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import fourfold
from experiments.lib.machine import describe
from fourfold.data.corpus import Corpus
from fourfold.data.documents import Document
from fourfold.data.packing import tokenise
from fourfold.evals.ngram import KneserNey
from fourfold.evals.perplexity import Scored, Text, encode, logits_scorer, model_scorer, score, summary
from fourfold.files import atomic_file
from fourfold.text.tokenizer import Tokenizer

HERE = Path(__file__).parent
ORDER, WHOLE = 5, 10**9  # tokens of an n-gram; a window that no document exceeds
CONTEXT = 1024  # tokens of SmolLM2 that a document is cut to
SEED = 0  # of the bootstrap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("baseline", choices=("ngram", "smollm2"))
    parser.add_argument("model", nargs="?", default="nano", help="what to compare with SmolLM2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, corpus = time.time(), Corpus.open("tiny-text")
    result = ngram(corpus) if options.baseline == "ngram" else smollm2(corpus, options.model)
    about = {**describe(), "seed": SEED, "corpus": corpus.name, "held_out_sha256": corpus.checksum("held_out")}
    out = HERE / f"{options.baseline}.json"
    with atomic_file(out) as partial:
        partial.write_text(json.dumps(about | result | {"seconds": round(time.time() - began)}, indent=1) + "\n", "utf-8")
    print(out)


def ngram(corpus: Corpus) -> dict:
    tokenizer = Tokenizer.load(corpus.tokenizer_folder)
    model = counted(corpus, tokenizer)
    sizes = [len(order.keys) for order in model.orders]
    texts = list(encode(corpus.documents("held_out"), tokenizer))
    return {"order": ORDER, "smoothing": "interpolated modified Kneser-Ney", "ngrams": sizes, **summary(by_counting(model, texts))}


def counted(corpus: Corpus, tokenizer: Tokenizer) -> KneserNey:
    """The n-gram model of the train split: within 2 GB and some 80 seconds."""
    return KneserNey(np.asarray(tokenise(corpus, tokenizer, "train")), tokenizer.vocab_size, tokenizer.special("bos"), ORDER)


def by_counting(model: KneserNey, texts: Sequence[Text]) -> list[Scored]:
    return score(texts, model.scorer, WHOLE, WHOLE, label="5-gram")


def smollm2(corpus: Corpus, name: str) -> dict:
    from experiments.nano.smollm2 import ABOUT, SmolLM2

    theirs, ours = SmolLM2(), fourfold.load(name, dtype="float32")
    documents = [cut(document, theirs) for document in corpus.documents("held_out")]
    own = list(encode(documents, ours.tokenizer))
    window = min(CONTEXT, ours.config.max_position_embeddings)
    # longest first would need the most memory last; `score` goes from the shortest on
    scored = {
        "smollm2": score([theirs.text(d) for d in documents], logits_scorer(theirs), WHOLE, 1, label="SmolLM2"),
        "ngram": by_counting(counted(corpus, ours.tokenizer), own),
        "model": score(own, model_scorer(ours), window, label=name),
    }
    sizes = {which: sum(each.bytes for each in parts) for which, parts in scored.items()}
    if len(set(sizes.values())) != 1:
        raise RuntimeError(f"the models were not scored on the same bytes: {sizes}")
    return {"smollm2_is": ABOUT, "model_is": Path(name).name, "model_window": window, "document_tokens": CONTEXT} | {
        which: summary(parts) for which, parts in scored.items()
    }


def cut(document: Document, theirs) -> Document:
    """The longest beginning of a text, in whole characters, within CONTEXT of their tokens; chats are short and stay whole."""
    if document.messages is not None:
        return document
    return dataclasses.replace(document, text=theirs.beginning(document.text, CONTEXT))


if __name__ == "__main__":
    main()
