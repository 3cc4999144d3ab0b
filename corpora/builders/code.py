"""Python's standard library, as shipped inside the npm package `pyodide` (whose versions never change)."""

import io
import zipfile
from pathlib import Path

from builders.common import Document, clean, is_held_out
from fourfold.data.documents import unit

TOTAL_BYTES = 4_500_000
LONGEST = 70_000
LEFT_OUT = (
    "site-packages/",
    "encodings/",
    "_pyodide/",
    "pyodide/",
    "_sysconfigdata",
    "html/entities.py",
    "pydoc_data/",
    "__phello__/",
)


def build(folder: Path) -> list[Document]:
    """Whole modules in hash order up to TOTAL_BYTES; tables and tests are left out."""
    archive = zipfile.ZipFile(io.BytesIO((folder / "package/python_stdlib.zip").read_bytes()))
    names = [i.filename for i in archive.infolist() if i.filename.endswith(".py") and 200 < i.file_size < LONGEST]
    names = [n for n in names if not n.startswith(LEFT_OUT) and "/test" not in n]
    documents, total = [], 0
    for name in sorted(names, key=lambda n: unit("python:" + n)):
        text = clean(archive.read(name).decode("utf-8"))
        total += len(text.encode())
        if total > TOTAL_BYTES:
            break
        documents.append(Document(f"python/{name}", "python", is_held_out(name), f"# {name}\n{text}"))
    return documents
