"""Samples of an omni model: drawings lie beside the nearest training picture, failures are told, and the card shows it all."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from experiments.omni import samples as made
from experiments.omni.card import BEGIN, END, SHEETS, write_card
from experiments.omni.sheets import Cell, image, sheet
from fourfold.data.omni import OmniCorpus
from fourfold.data.omni_documents import plain
from fourfold.data.shelf import pictured
from fourfold.errors import ConfigError, FourfoldError
from fourfold.evals.omni.subject import Prompt
from fourfold.text.tokenizer import Tokenizer
from tests.evals.omni_small import Constant, Mirror, Oracle, make_omni


class Copyist(Oracle):
    """Draws a training picture of what is asked for, at the size that is asked for."""

    def draw(self, wishes: Sequence[Prompt], grid: tuple[int, ...], label: str) -> Tensor:
        if len(grid) == 3:
            return super().draw(wishes, grid, label)
        asked = [plain(str(wish[0])).removeprefix("draw ") for wish in wishes]
        items = [next(item for item in self.items if item.kind == "image" and plain(item.text) == text) for text in asked]
        return torch.stack([pictured(item.media, 8 * grid[0], 8 * grid[0])[None] for item in items])


@pytest.fixture(scope="module")
def omni(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> OmniCorpus:
    return make_omni(tmp_path_factory.mktemp("corpora") / "media", tokenizer)


@pytest.fixture(autouse=True)
def no_recordings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURFOLD_HOME", str(tmp_path / "home"))


def test_who_copies_is_found_out_and_who_knows_is_right(omni: OmniCorpus, tmp_path: Path) -> None:
    items = [*omni.items("train"), *omni.items("held_out", {"sprites"})]
    found = made.samples(Copyist(items, Mirror()), omni, tmp_path)
    assert json.loads((tmp_path / "samples.json").read_text()) == found
    for row in (*found["clothes"], *found["emoji"]):
        assert row["rms"] < 0.001 and row["its_caption"] == row["asked"]
    assert len(found["clothes"]) == 3 * made.EACH and {row["caption"] for row in found["emoji"]} == {"known", "new"}
    assert len(found["clips"]) == 8 and all(row["measured"] == row["motion"] for row in found["clips"])
    assert all(row["right"] for part in ("read", "sounds", "not_there") for row in found[part])
    assert all(row["edits"] == 0 for row in found["speech"]) and {row["kind"] for row in found["speech"]} == {"word", "sentence"}
    for name in SHEETS:
        with Image.open(tmp_path / name) as picture:
            picture.load()


def test_what_went_wrong_is_shown_and_everything_is_on_the_card(omni: OmniCorpus, tmp_path: Path) -> None:
    folder, out = tmp_path / "model", tmp_path / "samples"
    folder.mkdir()
    (folder / "README.md").write_text("# tiny\n\nWords of its own.\n")
    found = made.samples(Constant("yes | no", Mirror()), omni, out)
    assert any(row["chosen"] == "for being wrong" and not row["right"] for row in found["read"])
    assert not any(row["right"] for row in found["not_there"])
    figure = {"value": 0.5, "interval": [0.4, 0.6], "chance": 0.1, "baseline": 0.2, "baseline_is": "a guess", "count": 1000}
    lacking = {"value": None, "reason": "no recordings here"}
    figures = {"model": "tiny", "limit": None, "some_accuracy": figure | {"ceiling": 0.9, "ceiling_is": "real"}, "other": lacking}
    write_card(folder, out, found, figures)
    first = (folder / "README.md").read_text()
    write_card(folder, out, found, figures)
    text = (folder / "README.md").read_text()
    assert text == first and text.startswith("# tiny\n\nWords of its own.") and text.count(BEGIN) == text.count(END) == 1
    assert "| some_accuracy | 0.500 [0.400, 0.600] | 0.100 | 0.200 (a guess) | 0.900 (real) | 1,000 |" in text
    assert "| other | - | | no recordings here | | |" in text and "yes / no" in text
    for name in SHEETS:
        assert f"(sample-{name})" in text and (folder / f"sample-{name}").read_bytes() == (out / name).read_bytes()


def test_sheets_of_too_many_bytes_are_refused(omni: OmniCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "README.md").write_text("# tiny\n")
    found = made.samples(Constant("no", Mirror()), omni, tmp_path)
    monkeypatch.setattr("experiments.omni.card.MOST", 10)
    with pytest.raises(FourfoldError, match="more than 10"):
        write_card(tmp_path, tmp_path, found, None)
    with pytest.raises(FourfoldError, match=r"README\.md: is not there"):
        write_card(tmp_path / "nowhere", tmp_path, found, None)


def test_a_model_that_draws_nothing_has_no_samples(omni: OmniCorpus, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="media_out"):
        made.samples(Constant("no"), omni, tmp_path)


def test_pictures_stand_where_they_belong() -> None:
    red, blue = (torch.zeros(3, 8, 8, dtype=torch.uint8) for _ in range(2))
    red[0], blue[2] = 255, 255
    whole = sheet([Cell([red, blue], ["words that go on for more than one line of the cell"]), Cell([blue])], 1, 16)
    assert whole.getpixel((5, 5)) == (255, 0, 0) and whole.getpixel((25, 5)) == (0, 0, 255)
    assert image(red[:, :4], 16).size == (16, 8)
