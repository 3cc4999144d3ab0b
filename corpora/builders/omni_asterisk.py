"""The prompts of the Asterisk telephone exchange: real speech of one professional speaker, for evaluation only.

They are CC-BY-SA and so not shipped. The recordings stay the WAV files (8 kHz) that they are.
"""

import gzip
import re
import wave
from collections.abc import Iterator
from pathlib import Path

from builders.omni_texts import NUMBERS
from fourfold.data.omni import Item

SPEAKER = "allison"


def build(recordings: Path, transcripts: Path) -> list[Item]:
    """Every prompt whose words are known, in the order of the list: tones and noises are left out, and numbers above nine."""
    spoken = dict(prompts(gzip.decompress(next(transcripts.rglob("core-sounds-en.txt.gz")).read_bytes()).decode("utf-8")))
    folder = next(recordings.rglob("en_US_f_Allison"))
    items = []
    for name, said in spoken.items():
        path, text = folder / f"{name}.wav", words(said)
        if text and path.is_file():
            with wave.open(str(path)) as sound:
                seconds = sound.getnframes() / sound.getframerate()
            details = {"task": "sentence", "voice": SPEAKER, "speaker": SPEAKER, "transcript": said, "seconds": round(seconds, 3)}
            items.append(Item(f"asterisk/{name}", "asterisk", "speech", path.read_bytes(), text, f"asterisk:{name}", details))
    return items


def prompts(listing: str) -> Iterator[tuple[str, str]]:
    """Names and transcripts; lines with a semicolon in front are remarks."""
    for line in listing.splitlines():
        name, colon, said = line.partition(":")
        if colon and not line.startswith(";"):
            yield name.strip(), said.strip()


def words(said: str) -> str | None:
    """What is heard, in small letters without punctuation; None for what is not words, or whose reading is not sure."""
    said = re.sub(r"\[[^]]*\]|<[^>]*>|\([^)]*\)", " ", said)
    said = re.sub(r"(?<!\w)\d(?!\w)", lambda digit: NUMBERS[int(digit.group())], said.lower().replace("’", "'"))
    if re.search(r"\d", said):
        return None
    return " ".join(re.findall(r"[a-z]+(?:'[a-z]+)*", said)) or None
