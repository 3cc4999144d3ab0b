"""Sounds of Sonic Pi: one recording an item, named after the family it belongs to, split by recording within each family."""

import re
from collections.abc import Iterator
from pathlib import Path

from builders.omni_audio import decoded, opus
from fourfold.data.documents import unit
from fourfold.data.omni import Item

BITS, HELD_OUT_SHARE = 24_000, 0.18
SHORTEST = 0.2  # seconds: clicks are shorter than what a packet holds
FAMILIES = {  # by the beginnings of file names; the first that fits
    "kick drum": r"bd_|drum_bass|drum_heavy|elec_hollow|elec_soft",
    "snare drum": r"sn_|drum_snare|elec_\w*snare|drum_roll",
    "cymbal": r"drum_cymbal|drum_splash|elec_cymbal",
    "tom": r"drum_tom|elec_fuzz_tom",
    "tabla": r"tabla_",
    "bass": r"bass_",
    "guitar": r"guit_",
    "drum loop": r"loop_",
    "robot voice": r"mehackit_robot|glitch_robot",
    "phone": r"mehackit_phone",
    "ambience": r"ambi_",
    "bell": r"perc_bell|elec_bell|elec_chime|elec_triangle|elec_ping|elec_bong|drum_cowbell|perc_till",
    "record player": r"vinyl_",
    "electronic blip": r"elec_",
    "glitch": r"glitch_",
    "percussion": r"perc_",
}


def build(folder: Path) -> Iterator[tuple[str, Item]]:
    recordings = sorted((path for path in folder.rglob("*.flac") if family(path.stem)), key=lambda path: path.stem)
    held_out = _held_out([path.stem for path in recordings])
    for path in recordings:
        media, seconds = opus(*decoded(path), BITS, "audio", SHORTEST)
        name = family(path.stem)
        details = {"family": name, "name": path.stem, "seconds": round(seconds, 3)}
        split = "held_out" if recording(path.stem) in held_out else "train"
        yield split, Item(f"sounds/{path.stem}", "sounds", "sound", media, name, f"sound:{recording(path.stem)}", details)


def family(name: str) -> str | None:
    """What kind of sound a file holds; None for the few of no kind."""
    return next((family for family, start in FAMILIES.items() if re.match(start, name)), None)


def recording(name: str) -> str:
    """`loop_amen` is a part of `loop_amen_full`."""
    return name.removesuffix("_full")


def _held_out(names: list[str]) -> set[str]:
    """Of each family its share of recordings, but at least one."""
    chosen: set[str] = set()
    for kind in FAMILIES:
        members = sorted({recording(name) for name in names if family(name) == kind}, key=lambda name: unit("sound:" + name))
        chosen |= set(members[: max(1, round(HELD_OUT_SHARE * len(members)))])
    return chosen
