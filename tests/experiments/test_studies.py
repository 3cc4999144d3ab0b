"""The studies' runner: units kept one by one and skipped, equal sizes, intervals, and one unit of a real study from end to end."""

import json
import math
from pathlib import Path

import pytest
import torch

from experiments.ablation.run import ARMS, Ablation
from experiments.balance.run import watched_loads
from experiments.depth.run import Depth, spikes
from experiments.engram.run import ARMS as SHARES
from experiments.engram.run import EngramShare
from experiments.lib.sizes import match_active, sizes
from experiments.lib.stats import interval, paired
from experiments.lib.study import Study
from fourfold.errors import ConfigError, FourfoldError
from fourfold.presets import preset
from fourfold.training.loop import train


class Squares(Study):
    """A study whose units are computed at once."""

    name, tokens, seeds, arms = "squares", 10, (0, 1, 2), ("one", "two")

    def __init__(self):
        self.measured = []

    def settings(self, arm, seed, tokens):
        return {"arm": arm, "seed": seed, "tokens": tokens}

    def measure(self, unit, tokens):
        self.measured.append((unit.arm, unit.seed))
        return {"value": tokens * (1 + self.arms.index(unit.arm)) + unit.seed**2}

    def merge(self, found, tokens):
        return {"arms": {arm: {str(seed): unit["value"] for seed, unit in units.items()} for arm, units in found.items()}}

    def table(self, result):
        return str(result["arms"])

    def draw(self, result):
        from matplotlib.figure import Figure

        return Figure(figsize=(1, 1))


@pytest.fixture(autouse=True)
def own_home(tmp_path, monkeypatch):
    monkeypatch.setenv("FOURFOLD_HOME", str(tmp_path / "home"))
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def test_units_are_kept_and_never_done_twice(tmp_path, capsys):
    study, out = Squares(), tmp_path / "out"
    study.main(["--only", "two", "--seeds", "1", "--no-summary"])
    study.main(["--out", str(out)])
    assert sorted(study.measured) == sorted((arm, seed) for arm in study.arms for seed in study.seeds)
    assert "two seed 1: done before" in capsys.readouterr().out
    result = json.loads((out / "result.json").read_text())
    assert result["arms"]["two"] == {"0": 20, "1": 21, "2": 24} and result["seeds"] == [0, 1, 2]
    assert (out / "plot.png").stat().st_size > 0
    before = len(study.measured)
    study.main(
        ["--tokens", "7", "--only", "one", "--seeds", "0", "--out", str(out)]
    )  # other settings: another unit, beside the first
    assert len(study.measured) == before + 1
    study.main(["--summarise", "--out", str(out)])
    assert json.loads((out / "result.json").read_text())["arms"]["one"]["0"] == 10 and len(study.measured) == before + 1


def test_nothing_to_summarise_is_said_in_one_line(tmp_path):
    with pytest.raises(FourfoldError, match="squares: no unit"):
        Squares().summarise(10, [0], tmp_path)


def test_an_interval_by_hand():
    # mean 2, standard deviation 1, three values: 4.303 / sqrt(3)
    assert interval([1.0, 2.0, 3.0])["half_width"] == pytest.approx(2.4843, abs=1e-3)
    assert interval([5.0])["half_width"] is None
    difference = paired({0: 1.5, 1: 2.5, 7: 9.0}, {0: 1.0, 1: 2.0, 2: 4.0})
    assert difference["mean"] == 0.5 and difference["half_width"] == 0.0 and difference["seeds"] == [0, 1]


def test_widths_are_found_that_make_the_active_parameters_equal():
    micro, target = preset("micro"), 1_000_000
    width = match_active(lambda w: micro.but(experts=None, intermediate_size=w), target)
    near = {w: abs(sizes(micro.but(experts=None, intermediate_size=w))["active"] - target) for w in (width - 1, width, width + 1)}
    assert min(near, key=near.get) == width and near[width] < 0.02 * target
    with pytest.raises(ConfigError, match="width"):
        match_active(lambda w: micro.but(experts=None, intermediate_size=w), 1000)


def test_every_ablation_has_the_active_parameters_of_the_whole():
    study = Ablation()
    found = {arm: sizes(study.recipe(arm, 0, study.tokens).model_config()) for arm in ARMS}
    for arm, held in found.items():
        assert held["active"] == pytest.approx(found["full"]["active"], rel=0.02), arm
    assert not found["no-engram"]["engram_tables"] and not found["dense-ffn"]["routed_experts"] and not found["bare"]["mtp"]


def test_engram_shares_are_of_one_sum():
    found = {arm: sizes(EngramShare().recipe(arm, 0, 1000).model_config()) for arm in SHARES}
    sums = {arm: held["engram_tables"] + held["routed_experts"] for arm, held in found.items()}
    for arm, share in SHARES.items():
        if arm.startswith("share"):
            assert sums[arm] == pytest.approx(sums["share-0"], rel=0.02)
            assert found[arm]["engram_tables"] / sums[arm] == pytest.approx(share / 100, abs=0.02)
        assert found[arm]["active"] == pytest.approx(found["share-0"]["active"], rel=0.02)
    assert sums["added-25"] > 1.2 * sums["share-0"]


def test_spikes_are_counted_once_each():
    assert spikes([9.0, 5.0, 6.5, 6.4, 5.2, 4.9, 6.0, 4.8]) == 2
    assert spikes([9.0, 8.0, 7.5]) == 0
    assert spikes([9.0, math.nan, math.nan]) == 1


def test_loads_are_watched_in_training_only():
    model = _tiny()
    with watched_loads() as loads:
        model(torch.arange(12)[None])
        with torch.no_grad():
            model(torch.arange(12)[None])
    experts = model.config.experts
    assert len(loads) == sum(model.config.has_experts(layer) for layer in range(model.config.num_hidden_layers))
    assert all(len(steps) == 1 and steps[0].sum() == 12 * experts.num_experts_per_tok for steps in loads.values())


def _tiny():
    from fourfold.model.transformer import Transformer

    return Transformer(preset("debug").but(vocab_size=64, memory=None)).init_weights(0)


def test_units_of_depth_from_end_to_end(small_corpus, tmp_path: Path):
    Depth().main(["--only", "mhc-8-normal", "hc-8-high", "--seeds", "0", "--tokens", "3072", "--out", str(tmp_path)])
    arms = json.loads((tmp_path / "result.json").read_text())["arms"]
    assert set(arms) == {"mhc-8-normal", "hc-8-high"}
    assert len(arms["mhc-8-normal"]["course"]["loss"]) == 3
    assert arms["mhc-8-normal"]["largest_gain_forward"]["mean"] == pytest.approx(1.0, abs=0.05)


def test_a_unit_that_was_stopped_goes_on_and_ends_alike(small_corpus, tmp_path: Path):
    study, tokens = EngramShare(), 8192
    unit = study.unit("share-25", 0, tokens)
    whole = study.measure(unit, tokens)
    recipe = study.recipe("share-25", 0, tokens)
    train(recipe, out=unit.folder, steps=2)
    study.main(["--only", "share-25", "--seeds", "0", "--tokens", str(tokens), "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())["arms"]["share-25"]
    assert result["bits_per_byte"]["values"] == [whole["held_out"]["sparse"]]
    points = [(point["tokens"], point["bits_per_byte"]) for point in whole["points"]]
    assert [(point["tokens"], point["bits_per_byte"]) for point in result["curve"]["0"]] == points and len(
        points
    ) == recipe.steps == 4
    assert not unit.folder.exists()
