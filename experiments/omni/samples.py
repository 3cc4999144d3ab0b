"""What an omni model draws, sees and hears, none of it chosen afterwards: PNG files and samples.json, and the model's card.

python experiments/omni/samples.py MODEL [--out DIR] [--card FOLDER] [--figures FILE]

Items come in an order that hangs on their ids alone; drawing i of a kind has seed i. All are held out but the captions marked as
known. Beside what is drawn stands the training picture that is nearest to it by its pixels. `--card` puts the pictures into a
checkpoint's folder and the samples into its README.md, with the table of `fourfold eval omni MODEL --out FILE`.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

import fourfold
from experiments.omni.card import write_card
from experiments.omni.sheets import Cell, sheet, strip, write
from fourfold import paths
from fourfold.data import omni_wordings as words
from fourfold.data.omni import Item, OmniCorpus
from fourfold.data.omni_documents import name, plain
from fourfold.data.shelf import pictured
from fourfold.errors import ConfigError, FourfoldError
from fourfold.evals.omni import clips, crossing, emoji, fashion, sounds, speech
from fourfold.evals.omni.asking import hashed, other_names, other_than, worded
from fourfold.evals.omni.labels import affirmed, labelled
from fourfold.evals.omni.spread import nearest
from fourfold.evals.omni.subject import ModelSubject, Subject
from fourfold.evals.omni.suite import REAL, Shelves
from fourfold.evals.omni.transcripts import character_errors
from fourfold.files import atomic_file
from fourfold.media.motion import WAYS, way

EACH, CAPTIONS = 3, 12  # drawings of a class; captions drawn, known ones and new ones
ASKED, SHOWN, WRONG = 60, 12, 6  # things asked about, of them shown as they come, and of the rest those that went wrong
SPOKEN, THERE = 10, 12  # words, sentences and recordings written down; questions after what is not there
LONGEST = 24  # tokens of a caption
CELL = 64  # pixels of a picture on a sheet
FRAMES = 4  # of a clip that is read


def samples(subject: Subject, corpus: OmniCorpus, folder: Path) -> dict:
    """Write clothes.png, emoji.png, clips.png, read.png and samples.json into the folder; returns what the last one says.

    Raises ConfigError for a model that draws nothing.
    """
    if subject.codec is None:
        raise ConfigError("media_out: this model draws nothing; show one that does, such as nano-omni")
    shelves = Shelves(corpus)
    folder.mkdir(parents=True, exist_ok=True)
    found = {
        "clothes": clothes(subject, shelves, folder),
        "emoji": captions(subject, shelves, folder),
        "clips": films(subject, shelves, folder),
        "read": readings(subject, shelves, folder),
        "speech": transcripts(subject, shelves),
        "sounds": noises(subject, shelves),
        "not_there": absent(subject, shelves),
    }
    with atomic_file(folder / "samples.json") as path:
        path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return found


def clothes(subject: Subject, shelves: Shelves, folder: Path) -> list[dict]:
    """Every class of Fashion-MNIST a few times."""
    train = shelves.of("train", fashion.SOURCE)
    names = [text for text in sorted({item.text for item in train}) for _ in range(EACH)]
    drawn = _draw(subject, names, fashion.SIDE)
    cells, rows = _beside(drawn, train, fashion.SIDE, [[text] for text in names])
    write(sheet(cells, 2 * EACH, CELL), folder / "clothes.png")
    return [{"asked": text} | row for text, row in zip(names, rows, strict=True)]


def captions(subject: Subject, shelves: Shelves, folder: Path) -> list[dict]:
    """Captions of emoji, half of which training had, half not."""
    items = {split: shelves.of(split, *emoji.STYLES) for split in ("train", "held_out")}
    texts = {split: list(dict.fromkeys(item.text for item in hashed(own, "drawn")))[:CAPTIONS] for split, own in items.items()}
    wanted = [(text, "known" if split == "train" else "new") for split, own in texts.items() for text in own]
    drawn = _draw(subject, [text for text, _ in wanted], emoji.SIDE)
    cells, rows = _beside(drawn, items["train"], emoji.SIDE, [[f"{text} ({kind})"] for text, kind in wanted])
    write(sheet(cells, 6, CELL), folder / "emoji.png")
    return [{"asked": text, "caption": kind} | row for (text, kind), row in zip(wanted, rows, strict=True)]


def films(subject: Subject, shelves: Shelves, folder: Path) -> list[dict]:
    """A clip of each way of moving from the caption of a held-out one, frame by frame, beside that one."""
    moving = clips.moving(shelves.of("held_out", "sprites"))
    firsts = [next((item for item in moving if item.details["motion"] == motion), None) for motion in WAYS]
    items = [item for item in firsts if item is not None]
    wishes = [(words.DRAW["clip"][0].format(t=item.text),) for item in items]
    side = clips.SIDE // subject.grids.code_downsample
    drawn = subject.draw(wishes, (clips.FRAMES, side, side), "drawing clips")
    cells = [
        Cell(list(frames), [said])
        for clip, item in zip(drawn, items, strict=True)
        for frames, said in ((clip, f"drawn: {item.text}"), (clips.frames_of(item), "a real clip of that caption"))
    ]
    write(sheet(cells, 2, CELL // 2), folder / "clips.png")
    measured = [way(clip) for clip in drawn]
    return [
        {"asked": item.text, "id": item.id, "motion": item.details["motion"], "measured": seen}
        for item, seen in zip(items, measured, strict=True)
    ]


def readings(subject: Subject, shelves: Shelves, folder: Path) -> list[dict]:
    """Held-out pictures and clips described: the first of each kind as they come, then what went wrong among the others."""
    kinds: dict[str, tuple[list[Item], Callable[[str, Item], bool]]] = {
        "clothes": (shelves.of("held_out", fashion.SOURCE), _names_class(shelves)),
        "emoji": (shelves.of("held_out", *emoji.STYLES), _same),
        "clips": (shelves.of("held_out", "sprites"), _same),
    }
    rows: list[dict] = []
    cells: list[Cell] = []
    for kind, (items, is_right) in kinds.items():
        chosen = hashed(items, "read")[:ASKED]
        prompts = [(item, worded(words.READ[item.kind], item.id)) for item in chosen]
        said = subject.answer(prompts, LONGEST, f"reading {kind}")
        right = [is_right(reply, item) for reply, item in zip(said, chosen, strict=True)]
        wrong = [place for place in range(SHOWN, len(chosen)) if not right[place]][:WRONG]
        for place in [*range(min(SHOWN, len(chosen))), *wrong]:
            item, asked = chosen[place], prompts[place][1]
            about = {"id": item.id, "asked": asked, "said": said[place], "true": item.text, "right": right[place]}
            rows.append({"kind": kind, "chosen": "as it comes" if place < SHOWN else "for being wrong"} | about)
            cells.append(Cell(_looks(item), [said[place], f"({item.text})"]))
        rows[-1] |= {"asked_in_all": len(chosen), "right_in_all": sum(right)}
    pictures, moving = ([c for c in cells if (len(c.pictures) > 1) == is_clip] for is_clip in (False, True))
    write(sheet(pictures, 9, CELL), folder / "read.png")
    write(sheet(moving, 3, CELL), folder / "watched.png")
    return rows


def transcripts(subject: Subject, shelves: Shelves) -> list[dict]:
    """Single words, sentences, and recordings of a person where those have been fetched."""
    singles, sentences = (hashed(own, "said")[:SPOKEN] for own in speech.parted(shelves.of("held_out", "speech")))
    real = hashed(OmniCorpus.open(REAL).items("held_out"), "said")[:SPOKEN] if paths.find("corpora", REAL) else []
    rows = []
    for kind, items in (("word", singles), ("sentence", sentences), ("real recording", real)):
        for item, said in zip(items, speech.written(subject, items, kind) if items else [], strict=True):
            wrong, length = character_errors(said, item.text)
            rows.append({"kind": kind, "id": item.id, "said": said, "true": item.text, "edits": wrong, "characters": length})
    return rows


def noises(subject: Subject, shelves: Shelves) -> list[dict]:
    """All held-out sounds."""
    items = shelves.of("held_out", "sounds")
    labels = sounds.names_of([*shelves.of("train", "sounds"), *items])
    replies = subject.answer([(item, worded(words.READ["sound"], item.id)) for item in items], LONGEST, "sounds")
    return [
        {"id": item.id, "said": said, "true": item.text, "right": labelled(said, labels) == sounds.family(item)}
        for item, said in zip(items, replies, strict=True)
    ]


def absent(subject: Subject, shelves: Shelves) -> list[dict]:
    """Whether a thing is there that is not."""
    pictures = shelves.of("held_out", *emoji.STYLES)
    pairs = [(item, other_than(item, pictures, item.id)) for item in hashed(pictures, "absent")[:THERE]]
    asked = [(item, other, crossing.there(item, other)) for item, other in pairs if other is not None]
    replies = subject.answer([prompt for *_, prompt in asked], crossing.LONGEST, "what is not there")
    return [
        {"id": item.id, "true": item.text, "asked": prompt[1], "said": said, "right": affirmed(said) is False}
        for (item, _, prompt), said in zip(asked, replies, strict=True)
    ]


def _draw(subject: Subject, texts: Sequence[str], side: int) -> Tensor:
    """uint8 [n, 3, side, side]: a picture of each caption."""
    step = subject.grids.code_downsample
    wishes = [(words.DRAW["image"][0].format(t=text),) for text in texts]
    return subject.draw(wishes, (side // step, side // step), "drawing pictures")[:, 0]


def _beside(drawn: Tensor, train: Sequence[Item], side: int, said: Sequence[list[str]]) -> tuple[list[Cell], list[dict]]:
    """Each drawing with the training picture that is nearest to it, which one that is, and how far (RMS of pixels in 0..1)."""
    known = torch.stack([pictured(item.media, side, side) for item in train])
    distances, places = nearest(drawn.flatten(1).float() / 255, known.flatten(1).float() / 255)
    apart = (distances / drawn[0].numel() ** 0.5).tolist()
    cells = [Cell([mine, known[place]], lines) for mine, place, lines in zip(drawn, places.tolist(), said, strict=True)]
    rows = [{"nearest": train[p].id, "its_caption": train[p].text, "rms": round(d, 4)} for p, d in zip(places, apart, strict=True)]
    return cells, rows


def _looks(item: Item) -> list[Tensor]:
    if item.kind == "clip":
        return strip(clips.frames_of(item), FRAMES)
    return [pictured(item.media, emoji.SIDE, 8)]


def _same(said: str, item: Item) -> bool:
    return plain(said) == plain(item.text)


def _names_class(shelves: Shelves) -> Callable[[str, Item], bool]:
    labels = {item.concept: other_names(name(item)) for item in shelves.of("train", fashion.SOURCE)}
    return lambda said, item: labelled(said, labels) == item.concept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="name or folder")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "samples", help="folder of the files")
    parser.add_argument("--card", type=Path, help="folder of a checkpoint whose README.md gets the samples")
    parser.add_argument("--figures", type=Path, help="what `fourfold eval omni MODEL --out FILE` wrote")
    args = parser.parse_args()
    torch.set_num_threads(1)
    try:
        corpus = OmniCorpus.open("tiny-omni")
        found = samples(ModelSubject(fourfold.load(args.model), corpus), corpus, args.out)
        if args.card:
            write_card(args.card, args.out, found, json.loads(args.figures.read_text("utf-8")) if args.figures else None)
    except FourfoldError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
