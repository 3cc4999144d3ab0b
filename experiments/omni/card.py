"""The part of a model's card that shows what it does: figures, sheets of pictures, and what it wrote.

python experiments/omni/card.py FOLDER [--samples DIR] [--figures FILE]

Writes between two marks in FOLDER/README.md, at its end when they are not there, and copies the sheets beside it.
"""

import argparse
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from fourfold.errors import FourfoldError
from fourfold.files import atomic_file

BEGIN, END = "<!-- samples: written by experiments/omni/card.py -->", "<!-- end of samples -->"
SHEETS = {
    "clothes.png": "Classes of Fashion-MNIST: each drawing, and right of it the training picture nearest to it.",
    "emoji.png": "Captions of emoji, twelve that training had (known) and twelve that it had not (new); right of each drawing the "
    "training picture nearest to it.",
    "clips.png": "Clips frame by frame: left as drawn, right the held-out clip that the caption is of.",
    "read.png": "Held-out pictures, what the model says of them and (what is true): of each kind twelve as they come, then some "
    "that it got wrong.",
    "watched.png": "Held-out clips, likewise.",
}
MOST = 1_000_000  # bytes of all sheets


def write_card(folder: Path, samples_folder: Path, samples: dict, figures: dict | None) -> Path:
    """README.md of a checkpoint with its samples. Raises FourfoldError when there is no card, or the sheets are too large."""
    card, sheets = folder / "README.md", [samples_folder / name for name in SHEETS]
    if not card.is_file():
        raise FourfoldError(f"{card}: is not there; name the folder of a checkpoint")
    if (size := sum(sheet.stat().st_size for sheet in sheets)) > MOST:
        raise FourfoldError(f"{samples_folder}: the sheets have {size:,} bytes, more than {MOST:,}; show fewer samples")
    for sheet in sheets:
        shutil.copyfile(sheet, folder / f"sample-{sheet.name}")
    part = "\n".join([BEGIN, *(table(figures) if figures else ()), *shown(samples), END])
    text = card.read_text("utf-8")
    before, found, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if found else ""
    with atomic_file(card) as partial:
        partial.write_text(f"{before.rstrip()}\n\n{part}\n{after.lstrip()}", "utf-8")
    return card


def table(figures: dict) -> Iterator[str]:
    """Every figure with its interval, chance level and baseline."""
    yield "## Pictures, clips and sound: figures"
    yield "Held-out data; 95 % intervals in brackets; `fourfold eval omni` makes this table.\n"
    yield "| figure | value | chance | simple baseline | at most | of |"
    yield "|---|---|---|---|---|---|"
    for name, row in figures.items():
        if not isinstance(row, dict):
            continue  # the model's name, the limit
        if row["value"] is None:
            yield f"| {name} | - | | {row['reason']} | | |"
            continue
        interval = "" if row["interval"] is None else f" [{number(row['interval'][0])}, {number(row['interval'][1])}]"
        most = f"{number(row['ceiling'])} ({row['ceiling_is']})" if "ceiling" in row else ""
        baseline = f"{number(row['baseline'])} ({row['baseline_is']})"
        yield f"| {name} | {number(row['value'])}{interval} | {number(row['chance'])} | {baseline} | {most} | {row['count']:,} |"
    yield ""


def shown(samples: dict) -> Iterator[str]:
    """The sheets, and tables of what was heard."""
    yield "## Samples"
    yield "None is chosen for its looks: items in an order that hangs on their ids alone, drawings with seeds 0, 1, 2 ..., all in"
    yield "`experiments/omni/samples/samples.json`.\n"
    for name, said in SHEETS.items():
        yield f"{said}\n\n![{said.split(':')[0]}](sample-{name})\n"
    read = [row for row in samples["read"] if "asked_in_all" in row]
    yield (
        "Right of those asked about: " + "; ".join(f"{r['kind']} {r['right_in_all']} of {r['asked_in_all']}" for r in read) + ".\n"
    )
    moved = sum(row["motion"] == row["measured"] for row in samples["clips"])
    yield f"Of the drawn clips above {moved} of {len(samples['clips'])} move as asked, measured from their pixels.\n"
    yield from _rows("Speech", ("kind", "true", "said"), samples["speech"])
    yield from _rows("Sounds", ("true", "said"), samples["sounds"])
    yield from _rows("Things that are not there", ("true", "asked", "said"), samples["not_there"])


def _rows(title: str, columns: tuple[str, ...], rows: list[dict]) -> Iterator[str]:
    yield f"### {title}"
    yield f"| {' | '.join(columns)} |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield f"| {' | '.join(_plain(row[column]) for column in columns)} |"
    yield ""


def _plain(text: str) -> str:
    """In one cell of a table."""
    return " ".join(text.replace("|", "/").split()) or "(nothing)"


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="of a checkpoint")
    parser.add_argument("--samples", type=Path, default=Path(__file__).parent / "samples")
    parser.add_argument("--figures", type=Path)
    args = parser.parse_args()
    try:
        found = json.loads((args.samples / "samples.json").read_text("utf-8"))
        write_card(args.folder, args.samples, found, json.loads(args.figures.read_text("utf-8")) if args.figures else None)
    except FourfoldError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
