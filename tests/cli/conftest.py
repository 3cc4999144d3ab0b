"""A checkpoint that reads and draws, and files to show it."""

from pathlib import Path

import pytest
import torch

from fourfold.formats.ours import save
from fourfold.media.writing import write_clip, write_image
from fourfold.text.tokenizer import Tokenizer
from tests.omni import make_omni, picture, write_tone


@pytest.fixture(scope="session")
def omni_checkpoint(tokenizer: Tokenizer, fourfold_home: Path) -> Path:
    """Found by the name `tiny-omni`, with its codec inside; not to be changed."""
    return save(make_omni(tokenizer), fourfold_home / "models" / "tiny-omni", tokenizer)


@pytest.fixture(scope="session")
def shown_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a.png, b.png, clip.mp4, tone.wav and words.txt."""
    folder = tmp_path_factory.mktemp("shown")
    write_image(picture(1), folder / "a.png")
    write_image(picture(2, 40, 20), folder / "b.png")
    write_clip(torch.stack([picture(seed, 16, 16) for seed in range(4)]), folder / "clip.mp4")
    write_tone(folder / "tone.wav")
    (folder / "words.txt").write_text("no media", "utf-8")
    return folder
