"""A corpus and a model for the evals' tests: texts of two sources, chats with sums, facts to recall, and room for long texts."""

import json
from pathlib import Path

from fourfold.data.corpus import Corpus, write_corpus
from fourfold.data.documents import Document
from fourfold.model.transformer import Transformer
from fourfold.presets import preset
from fourfold.text.tokenizer import Tokenizer
from tests.builders import scatter

FACTS = [
    ("capital", "France", "Paris", [], True),
    ("capital", "Peru", "Lima", [], True),
    ("capital", "Chad", "N'Djamena", ["Ndjamena"], True),
    ("language", "Peru", "Spanish", [], True),
    ("language", "Spain", "Spanish", ["Castilian"], True),
    ("language", "France", "French", [], True),
    ("language", "Mexico", "Spanish", [], False),
    ("language", "Brazil", "Portuguese", [], False),
]


def make_model(tokenizer: Tokenizer) -> Transformer:
    """Preset `debug` with random weights, every part far from its start, and its tokenizer."""
    classes, count = tokenizer.compression()
    config = preset("debug").but(vocab_size=tokenizer.vocab_size, max_position_embeddings=512, initializer_range=0.15)
    config = config.but(memory=config.memory.but(engram_compressed_vocab_size=count))
    model = scatter(Transformer(config, classes).init_weights(3), 3).eval()
    model.tokenizer = tokenizer
    return model


def make_corpus(folder: Path, tokenizer: Tokenizer) -> Corpus:
    """train and held_out are alike: what is measured here is never learnt."""
    folder.mkdir(parents=True)
    documents = [Document(f"long/{i}", "long", story(i, 40)) for i in range(3)]
    documents += [Document(f"short/{i}", "short", story(10 + i, 2)) for i in range(6)]
    sums = [
        ("sums/4+5", "4 + 5", "9"),
        ("sums/8-2", "What is 8 - 2?", "6"),
        ("chains/1", "1 + 2 + 3", "6"),
        ("problems/1/2", "Two?", "2"),
    ]
    documents += [chat(id, "sums" if "problems" not in id else "problems", asked, told) for id, asked, told in sums]
    documents += [chat("talk/1", "talk", "the cat?", "the dog ran off")]
    write_corpus(folder, folder.name, {"train": documents, "held_out": documents}, tokenizer)
    rows = [
        {"id": f"{r}/{e}", "relation": r, "entity": e, "question": f"{r} of {e}?", "answer": a, "aliases": more, "read": read}
        for r, e, a, more, read in FACTS
    ]
    (folder / "recall.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return Corpus.open(folder)


def story(seed: int, sentences: int) -> str:
    animals, places = ("cat", "dog", "bird", "fish"), ("mat", "rug", "hill", "dam")
    parts = [
        f"The {animals[(seed + i * i) % 4]} sat on the {places[(seed * i + i // 3) % 4]} and ran off." for i in range(sentences)
    ]
    return " ".join(parts)


def chat(id: str, source: str, asked: str, told: str) -> Document:
    reply = {"role": "assistant", "content": told, "reasoning_content": "so it is"}
    return Document.chat(id, source, [{"role": "user", "content": asked}, reply])
