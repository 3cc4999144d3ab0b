"""Build the corpus `tiny-chat` from the packages of tiny-text and reasoning-gym: python corpora/build_tiny_chat.py

Chats over the facts that tiny-text holds, each fact in many wordings, and sums with their working. Its text is that of
tiny-text's tokenizer, and its splits follow tiny-text's: what is held out there is held out here. recall.jsonl asks for
facts in wordings that are never trained on. Needs tiny-text; the packages are those of tiny-text.sources.json and
tiny-chat.sources.json.
"""

import argparse
import json
import platform
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pyarrow  # noqa: E402
from builders import common, country_facts, dishes, facts, fetch, problems, small_talk, sums, talk, word_facts  # noqa: E402

from fourfold import paths  # noqa: E402
from fourfold.data.corpus import Corpus, write_corpus  # noqa: E402
from fourfold.data.documents import Document, unit  # noqa: E402
from fourfold.files import atomic_folder  # noqa: E402
from fourfold.text.tokenizer import Tokenizer  # noqa: E402

SUMS, CHAINS = 1900, 1500
ROWS_PER_RELATION = 60  # of recall.jsonl, of facts that were read
LICENCES = {
    "facts": ("facts of wordnet and factbook, by template", "as its sources"),
    "unseen wordings": ("facts of wordnet and factbook, by template", "as its sources"),
    "words": ("wordnet, by template", "as its source"),
    "countries": ("factbook, by template", "as its source"),
    "dishes": ("recipes, by template", "as its source"),
    "problems": ("GSM-Symbolic templates of reasoning-gym, solutions shortened to their sums", "Apache-2.0"),
    "sums": ("our own, made by rule", "Apache-2.0"),
    "talk": ("our own, by hand", "Apache-2.0"),
    "chat": ("chatterbot-corpus", "BSD"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "tiny-chat")
    parser.add_argument("--cache", type=Path, default=paths.home() / "cache" / "sources", help="downloaded packages")
    options = parser.parse_args()
    text = Corpus.open(HERE / "tiny-text")
    tokenizer = Tokenizer.load(text.tokenizer_folder)
    pins, folders = gather(options.cache)
    known, documents = build(folders, text)
    splits = {split: [as_row(d) for d in documents if d.held_out == (split == "held_out")] for split in ("train", "held_out")}
    sources = {name: {"package": package, "licence": licence} for name, (package, licence) in LICENCES.items()}
    with atomic_folder(options.out) as folder:
        about = write_corpus(folder, "tiny-chat", splits, tokenizer, sources)
        rows = recall(known)
        (folder / "recall.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
        about |= {"packages": pins, "tokenizer": "tiny-text"}
        about["built_with"] = {"python": platform.python_version(), "pyarrow": pyarrow.__version__}
        (folder / "corpus.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(about["splits"], indent=1))


def gather(cache: Path) -> tuple[dict[str, dict], dict[str, Path]]:
    """The pins, and the folder of each package; the program ends when one cannot be had, for every part leans on them."""
    pins = json.loads((HERE / "tiny-chat.sources.json").read_text("utf-8"))
    shared = json.loads((HERE / "tiny-text.sources.json").read_text("utf-8"))
    pins = {name: shared[name] for name in ("wordnet", "factbook", "recipes", "chatterbot")} | pins
    folders = {name: fetch.fetch(name, pin, cache) for name, pin in pins.items()}
    if missing := [name for name, folder in folders.items() if folder is None]:
        sys.exit(f"error: {missing[0]}: cannot be had; check the network and its registry")
    return pins, {name: folder for name, folder in folders.items() if folder is not None}


def build(folders: dict[str, Path], text: Corpus) -> tuple[list[facts.Fact], list[common.Document]]:
    """All facts, and all documents in an order of their own; exact repeats left out (the held-out one of a pair goes)."""
    read = "\n".join(document.text.lower() for document in text.documents("train"))
    countries, described = country_facts.build(folders["factbook"])
    words, defined = word_facts.build(folders["wordnet"], read)
    known = countries + words
    documents = facts.documents(known) + described + defined + dishes.build(folders["recipes"])
    documents += problems.build(folders["problems"]) + sums.build(SUMS, CHAINS) + talk.build()
    documents += small_talk.build(folders["chatterbot"]) + small_talk.ours()
    kept: dict[str, common.Document] = {}
    for document in sorted(documents, key=lambda d: d.held_out):
        kept.setdefault(common.as_json(document.messages or []), document)
    return known, sorted(kept.values(), key=lambda d: unit("order:" + d.id))


def recall(known: list[facts.Fact]) -> list[dict]:
    """What the recall test asks, in an order of its own, so that the first rows are like all."""
    rows: list[dict] = []
    first = {fact.key: fact for fact in reversed(known)}  # of words with one meaning only the first is sure to be asked for
    fit = [fact for fact in first.values() if fact.recall and fact.answer.lower() not in fact.entity.lower()]
    for relation in sorted({fact.relation for fact in fit}):
        fitting = sorted((fact for fact in fit if fact.relation == relation), key=lambda f: unit("recall:" + f.key))
        read = [fact for fact in fitting if not fact.held_out][:ROWS_PER_RELATION]
        new = [fact for fact in fitting if fact.held_out and not fact.about.startswith("country-")]  # those are named elsewhere
        rows += [row(fact) for fact in read + new]
    return sorted(rows, key=lambda r: unit("recall-order:" + r["id"]))


def row(fact: facts.Fact) -> dict:
    return {
        "id": fact.key,
        "relation": fact.relation,
        "entity": fact.entity,
        "question": fact.unseen(),
        "answer": fact.answer,
        "aliases": list(fact.aliases),
        "read": not fact.held_out,
    }


def as_row(document: common.Document) -> Document:
    return Document.chat(document.id, document.source, document.messages or [])


if __name__ == "__main__":
    main()
