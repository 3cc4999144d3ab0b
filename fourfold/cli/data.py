"""`fourfold data`: say what is in a corpus, and build one from a user's own text."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(help="Describe corpora, or build one from your own text.", invoke_without_command=True)
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON: an object for one corpus, a list for several.")]


@app.callback()
def data(context: typer.Context, as_json: AsJson = False) -> None:
    """Without a verb: describe every corpus there is."""
    if context.invoked_subcommand is None:
        show([], as_json)


@app.command()
def show(
    names: Annotated[list[str] | None, typer.Argument(help="Names or folders; by default all there are.")] = None,
    as_json: AsJson = False,
) -> None:
    """Splits, sources, licences, documents, bytes and tokens of a corpus, its files checked against their sha256."""
    from fourfold.data.corpus import Corpus
    from fourfold.paths import available

    corpora = [Corpus.open(name) for name in names or available("corpora")]
    for corpus in corpora:
        for split in corpus.splits:
            for file in corpus.files(split):
                corpus.verify(file)
    if as_json:
        found = [{**corpus.about, "folder": str(corpus.folder), "verified": True} for corpus in corpora]
        typer.echo(json.dumps(found[0] if len(found) == 1 else found, ensure_ascii=False))
    else:
        typer.echo("\n\n".join(_describe(c.folder, c.about) for c in corpora) or "no corpora; fourfold data build makes one")


@app.command()
def build(
    out: Annotated[Path, typer.Argument(help="Folder of the new corpus (an older corpus there is replaced).")],
    source: Annotated[
        list[str],
        typer.Option("--from", help="A .txt, .md, .py or .jsonl file, a folder of them, or hub:NAME[:CONFIG]; may be repeated."),
    ],
    held_out: Annotated[float, typer.Option(min=0.0, max=0.5, help="Share of the documents to hold out; at least one is.")] = 0.03,
    limit: Annotated[int | None, typer.Option(min=1, help="At most so many documents of each --from.")] = None,
    vocab_size: Annotated[
        int | None,
        typer.Option(min=300, help="Train a tokenizer of this size on it, instead of taking the bundled one."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Build a corpus from your own text. JSON lines have a field `text` or `messages` (a chat)."""
    from fourfold.data.corpus import Corpus, split_documents, write_corpus
    from fourfold.data.documents import read_documents
    from fourfold.data.progress import progress
    from fourfold.errors import DataError
    from fourfold.files import atomic_folder
    from fourfold.text.tokenizer import Tokenizer

    if out.exists() and not (out / "corpus.json").is_file() and not (out.is_dir() and not any(out.iterdir())):
        raise DataError(f"{out}: is there already and is not a corpus; choose another folder")
    bundled = None if vocab_size else Corpus.open("tiny-text").tokenizer_folder
    splits, repeats = split_documents(progress(read_documents(source, limit), "reading"), held_out)
    tokenizer = Tokenizer.load(bundled) if bundled else Tokenizer.train((d.text for d in splits["train"]), vocab_size or 8192)
    with atomic_folder(out) as folder:
        if bundled:
            shutil.copytree(bundled, folder / "tokenizer")
        else:
            (folder / "tokenizer").mkdir()
            tokenizer.save(folder / "tokenizer")
        about = write_corpus(folder, out.resolve().name, splits, tokenizer)
    if repeats:
        typer.echo(f"{repeats} exact repeats left out", err=True)
    if "held_out" not in splits:
        typer.echo("nothing is held out, so a run on it has no held-out loss: give several files, or JSON lines", err=True)
    typer.echo(json.dumps({**about, "folder": str(out)}, ensure_ascii=False) if as_json else _describe(out, about))


def _describe(folder: Path, about: dict) -> str:
    lines = [f"{about['name']}  built {about['built']}  {folder}", ""]
    lines.append(_line("split", "documents", "bytes", "tokens", "files, sha256 as recorded"))
    for split, row in about["splits"].items():
        files = ", ".join(f"{f['file']} ({f['size'] / 1e6:.1f} MB)" for f in row["files"])
        lines.append(_line(split, *_counts([row]), files))
    lines += ["", _line("source", "documents", "bytes", "tokens", "licence")]
    for source, row in about["sources"].items():
        lines.append(_line(source, *_counts(row["splits"].values()), row.get("licence", "")))
    return "\n".join(lines)


def _counts(rows: Collection[dict]) -> list[str]:
    return [f"{sum(row[key] for row in rows):,}" for key in ("documents", "bytes", "tokens")]


def _line(name: str, *cells: str) -> str:
    documents, size, tokens, rest = cells
    return f"{name:<12} {documents:>10} {size:>13} {tokens:>12}  {rest}".rstrip()
