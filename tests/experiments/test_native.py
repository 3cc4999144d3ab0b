"""Native against late fusion against single models: all have read the same rows at the same rates, and units from end to end."""

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch

from experiments.lib import runs
from experiments.lib.study import NotReadyError
from experiments.native import run as native
from experiments.native.run import ALL, JOINT, Native
from fourfold.data.corpus import write_corpus
from fourfold.data.documents import Document
from fourfold.data.mixing import MixedRows
from fourfold.text.tokenizer import Tokenizer
from fourfold.training.omni_recipes import MICRO_LENGTH, MICRO_ROWS
from fourfold.training.recipe import Recipe
from tests.evals.omni_small import make_codec, make_omni
from tests.experiments.conftest import WORDS

STEP = MICRO_LENGTH * sum(rows for own in MICRO_ROWS.values() for rows in own.values())  # tokens of a joint arm's step


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Small corpora under the names of those that ship, and questions about few items."""
    folder, draw = tmp_path / "home", random.Random(1)
    threads = torch.get_num_threads()
    monkeypatch.setenv("FOURFOLD_HOME", str(folder))
    texts = [" ".join(draw.choices(WORDS, k=60)) + ".\n" for _ in range(120)]
    tokenizer = Tokenizer.train([*texts, "What is this? Draw a cat. the lamp moves up and to the left. yes no"], vocab_size=330)
    text = folder / "corpora" / "tiny-text"
    (text / "tokenizer").mkdir(parents=True)
    tokenizer.save(text / "tokenizer")
    documents = [Document(f"d{i}", "made", text) for i, text in enumerate(texts)]
    write_corpus(text, "tiny-text", {"train": documents[60:], "held_out": documents[:60]}, tokenizer)
    make_omni(folder / "corpora" / "tiny-omni", tokenizer)
    for name, value in {"ROWS": 2, "AT_ONCE": 2, "PICTURES": 6, "CLIPS": 4, "SPOKEN": 4, "TEXT_ROWS": 4, "ROUNDS": 1}.items():
        monkeypatch.setattr(native, name, value)
    assert runs.CORPUS == "tiny-text"
    yield folder
    torch.set_num_threads(threads)


def rows_of(recipe: Recipe) -> Counter:
    """How many rows a run reads of each source."""
    total: Counter = Counter()
    for stage in recipe.stages:
        total.update(MixedRows({}, dict(stage.mix)).counts(recipe.stage_steps(stage) * recipe.shape(stage)[0]))
    return total


def rates_of(recipe: Recipe) -> list[float]:
    return [recipe.at(step)[1] for step in range(recipe.steps)]


def test_every_arm_reads_the_same_rows_of_its_modalities_at_the_same_rates() -> None:
    study = Native()
    whole = study.recipe("native", 0, study.tokens)
    for arm in study.arms[1:]:
        recipe = study.recipe(arm, 0, study.tokens)
        own = {s for kind in (ALL if arm in JOINT else (arm,)) for s in MICRO_ROWS[kind]}
        assert rows_of(recipe) == {source: rows for source, rows in rows_of(whole).items() if source in own}, arm
        assert recipe.steps == whole.steps and rates_of(recipe) == pytest.approx(rates_of(whole)), arm
        assert recipe.model_config() == whole.model_config() and recipe.seed == whole.seed, arm
        assert sum(native.tokens_of(recipe, kind) for kind in ALL) == sum(stage.tokens for stage in recipe.stages), arm


def test_a_step_of_a_single_model_is_a_part_of_the_joint_one() -> None:
    study = Native()
    for kind in ALL:
        one, whole = (MixedRows({}, dict(study.recipe(arm, 0, study.tokens).stages[0].mix)) for arm in (kind, "native"))
        size, all_ = (study.recipe(arm, 0, study.tokens).batch_size for arm in (kind, "native"))
        for step in (0, 1, 77):
            mine = {one.source_of(place) for place in range(step * size, (step + 1) * size)}
            theirs = {whole.source_of(place) for place in range(step * all_, (step + 1) * all_)}
            assert mine == {(name, nth) for name, nth in theirs if name in MICRO_ROWS[kind]}


def test_without_a_codec_no_arm_is_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native.paths, "find", lambda kind, name: None)
    with pytest.raises(NotReadyError, match="codec"):
        Native().settings("native", 0, STEP)


def test_units_from_end_to_end(home: Path, tmp_path: Path) -> None:
    make_codec().save(home / "models" / "codec")
    arms = ("timing", "native", "images")
    Native().main(["--only", *arms, "--seeds", "0", "--tokens", str(STEP), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert (tmp_path / "plot.png").stat().st_size > 0
    assert result["arms"]["images"]["tokens"] == {"images": STEP // 4}
    assert {row["modality"] for row in result["figures"].values()} == set(ALL)
    for name, row in result["figures"].items():
        both = row["modality"] == "images"
        assert set(row["arms"]) == ({"native", "single"} if both else {"native"}), name
        assert (row["native_less_single"] is not None) == both and row["arms"]["native"]["mean"] >= 0, name
    asked = {name for name in result["figures"] if name in result["chance"]}
    assert len(asked) == 4 and result["chance"]["sprites, direction"]["chance"] == 1 / 8
    assert result["course"]["native"]["0"][-1]["tokens"] == STEP
    assert set(result["first_token"]) >= {"picture question", "chain of two models"}
