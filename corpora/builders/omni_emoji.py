"""Emoji: what they are called (emojibase), which of them are one concept, and their pictures by Fluent 3D and Noto."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from builders.omni_common import SIDE, code_points, fitted, picture
from fourfold.data.omni import Item

SKIN_TONE = re.compile("1f3f[b-f]")
# A man, a woman and a person who do the same are one concept: a picture of one shows nearly what that of the other does.
PERSON = {"1f468": "1f9d1", "1f469": "1f9d1", "1f466": "1f9d2", "1f467": "1f9d2", "1f474": "1f9d3", "1f475": "1f9d3"}
PERSON |= {"1f478": "1f934", "1f57a": "1f483", "1f936": "1f385", "1f6b9": "1f6bb", "1f6ba": "1f6bb"}
VARIANTS = ("200d-2640", "200d-2642", "200d-27a1")  # a woman, a man, facing right
NOTO_SIZE = 109  # the one size at which this bitmap font can be drawn


@dataclass(frozen=True)
class Emoji:
    """An emoji: its code points, what the split goes by, and its words."""

    code: str
    concept: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str
    characters: str

    @property
    def noun(self) -> bool:
        """Whether its name does as the noun of a sentence: a thing, one or two plain words, not in the plural."""
        things = ("animals & nature", "food & drink", "travel & places", "activities", "objects")
        plain = re.fullmatch(r"[a-z]+( [a-z]+)?", self.label) and not re.search("[^sui]s$|^foggy$", self.label)
        return self.group in things and bool(plain)


def read(folder: Path) -> dict[str, Emoji]:
    """All emoji of emojibase without skin tones and the parts that emoji are made of, by code points."""
    english = folder / "package/en"
    names = json.loads((english / "messages.json").read_text("utf-8"))
    groups, subgroups = ({row["order"]: row["message"] for row in names[key]} for key in ("groups", "subgroups"))
    rows = json.loads((english / "data.json").read_text("utf-8"))
    rows = [row for row in rows if groups.get(row.get("group"), "components") != "components"]
    labels = {row["label"]: code_points(row["hexcode"]) for row in rows}
    found = {}
    for row in rows:
        code, label = code_points(row["hexcode"]), row["label"]
        concept = _concept(labels.get(label.removesuffix(" face"), code))  # a rabbit and a rabbit's face are one, too
        words = tuple(tag for tag in row.get("tags", ()) if tag != label)
        found[code] = Emoji(code, concept, label, words, groups[row["group"]], subgroups[row["subgroup"]], row["emoji"])
    return found


def _concept(code: str) -> str:
    for sign in VARIANTS:
        code = code.replace("-" + sign, "")
    return "-".join(PERSON.get(part, part) for part in code.split("-"))


def files(folder: Path, emoji: dict[str, Emoji]) -> Iterator[tuple[Emoji, Path]]:
    """The pictures of a package of Fluent emoji whose names are known, without skin tones, one for each code."""
    named = {code_points(path.stem): path for path in sorted((folder / "package/assets").glob("*.webp"))}
    for code, path in sorted(named.items()):
        if code in emoji and not SKIN_TONE.search(code):
            yield emoji[code], path


def fluent(folder: Path, emoji: dict[str, Emoji]) -> Iterator[Item]:
    for one, path in files(folder, emoji):
        yield as_item("fluent", one, fitted(Image.open(path).convert("RGBA"), SIDE))


def noto(folder: Path, emoji: dict[str, Emoji]) -> Iterator[Item]:
    for one, image in glyphs(folder, emoji):
        yield as_item("noto", one, fitted(image, SIDE))


def glyphs(folder: Path, emoji: dict[str, Emoji]) -> Iterator[tuple[Emoji, Image.Image]]:
    """Each emoji that the font draws as one picture, RGBA 136 x 128."""
    path = folder / "usr/share/fonts/truetype/noto/NotoColorEmoji.ttf"
    font = ImageFont.truetype(path, NOTO_SIZE, layout_engine=ImageFont.Layout.RAQM)
    width = font.getlength("\N{GRINNING FACE}")
    for _, one in sorted(emoji.items()):
        if font.getlength(one.characters) == width:  # a sequence the font has no picture of is drawn as several
            image = Image.new("RGBA", (136, 128))
            ImageDraw.Draw(image).text((0, 0), one.characters, font=font, embedded_color=True, anchor="lt")
            if image.getbbox():
                yield one, image


def as_item(source: str, emoji: Emoji, image: Image.Image) -> Item:
    return Item(f"{source}/{emoji.code}", source, "image", picture(image), emoji.label, emoji.concept, about(emoji, source))


def about(emoji: Emoji, style: str) -> dict:
    """What the details of an item say of the emoji that it shows."""
    return {"code": emoji.code, "tags": list(emoji.tags), "group": emoji.group, "subgroup": emoji.subgroup, "style": style}
