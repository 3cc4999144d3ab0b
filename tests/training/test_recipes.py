"""Recipes: reading back, overriding by name, and what is said about a wrong name or value."""

import json

import pytest

from fourfold.errors import ConfigError
from fourfold.planner.count import count
from fourfold.training import recipes
from fourfold.training.recipes import RECIPES, override, recipe


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_written_and_read_back(name):
    chosen = recipe(name)
    assert recipes.from_dict(json.loads(json.dumps(recipes.to_dict(chosen)))) == chosen
    modes = {stage.mode for stage in chosen.stages}
    if not chosen.init:  # what goes on from trained weights need not train all of them
        assert modes == ({"dense"} if chosen.model_config().selection is None else {"dense", "indexer", "sparse"})


def test_overrides_are_typed_and_reach_every_level():
    settings = "optimizer.lr=1e-3 optimizer.betas=0.8,0.9 stages.dense.tokens=200_000 batch_size=3 compile=true seed=7".split()
    changed = override(
        recipe("debug"), [*settings, "model.hidden_size=64", "model.experts.n_routed_experts=4", "stages.sparse.lr=none"]
    )
    assert (changed.optimizer.lr, changed.optimizer.betas) == (1e-3, (0.8, 0.9))
    assert (changed.stages[0].tokens, changed.batch_size, changed.compile, changed.seed) == (200_000, 3, True, 7)
    assert changed.stages[2].lr is None and changed.stages[1] == recipe("debug").stages[1]
    config = changed.model_config()
    assert config.hidden_size == 64 and config.experts.n_routed_experts == 4
    plain = override(recipe("debug"), ["model.streams=none", "model.memory=null"]).model_config()
    assert plain.streams is None and plain.memory is None and plain.experts is not None


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("optimiser.lr=1", "near: optimizer.lr"),
        ("model.hiden_size=1", "near: model.hidden_size"),
        ("stages.dense.token=1", "near: stages.dense.tokens"),
        ("batch_size=many", "batch_size: 'many' does not fit"),
        ("optimizer.lr=[]", "optimizer.lr"),
        ("stages.dense.mode=both", "stages.dense.mode: 'both' does not fit"),
        ("seed", "has no value"),
        ("model.hidden_size=-4", "hidden_size"),
        ("model.selection=none", "stages.indexer.mode"),
        ("sequence_length=99999", "sequence_length"),
        ("model.vocab_size=500", "model.vocab_size: follows from the tokenizer"),
        *((f"{name}=0", f"{name}: 0 does not fit") for name in ("batch_size", "sequence_length", "document_stride", "eval_rows")),
        ("sequence_length=-4", "sequence_length: -4"),
        *((f"{name}=-1", f"{name}: -1 does") for name in ("micro_batch_size", "threads", "seed", "mtp_weight", "checkpoint_every")),
        *((f"optimizer.lr={value}", "optimizer.lr: ") for value in ("nan", "NaN", "inf", "Infinity", "-1")),
        ("optimizer.betas=[1,2]", "optimizer.betas.0: 1 does not fit"),
        ("optimizer.betas=0.9", "optimizer.betas: 0.9 does not fit"),
        ("optimizer.clip=0", "optimizer.clip: 0 does not fit"),
        ("stages.dense.tokens=-5", "stages.dense.tokens: -5 does not fit"),
        ("stages.dense.warmup=1.1", "stages.dense.warmup: 1.1 does not fit"),
        ("stages.sparse.decay=-0.1", "stages.sparse.decay: -0.1 does not fit"),
        ("stages.dense.sequence_length=99999", "stages.dense.sequence_length: 99999 exceeds max_position_embeddings ("),
        ("stages.dense.batch_size=-1", "stages.dense.batch_size: -1 does not fit"),
        ("stages.dense.mix.tiny-text=-1", "stages.dense.mix.tiny-text: -1 does not fit"),
        ("stages.dense.mix.tiny-text=most", "stages.dense.mix.tiny-text: 'most' does not fit"),
        ("stages.dense.mix.tiny-text=0", "stages.dense.mix: every share is 0"),
        ("stages.dense.mix=tiny-text", "stages.dense.mix: 'tiny-text' does not fit"),
        ("stages.dens.mix.tiny-text=1", "no such field"),
        ("stages.sparse.name=dense", "stages: two are called dense"),
        ("seed=99999999999999999999", "seed: 99999999999999999999 does not fit"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(setting, said):
    with pytest.raises(ConfigError, match=".") as caught:
        override(recipe("debug"), [setting])
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "values", [{}, {"name": "a", "preset": "debug", "stages": [5]}, {"name": "a", "preset": "debug", "stages": [{}]}]
)
def test_a_recipe_that_is_not_whole_is_one_line(values):
    with pytest.raises(ConfigError, match="^(name|stages[.]0[.a-z]*|stages[.]0): .*does not fit"):
        recipes.from_dict(values)


def test_a_run_of_no_steps_is_refused():
    with pytest.raises(ConfigError, match="^stages: all have 0 tokens"):
        override(recipe("debug"), [f"stages.{name}.tokens=0" for name in ("dense", "indexer", "sparse")])


def test_an_unknown_recipe_names_those_there_are():
    with pytest.raises(ConfigError, match="debug, micro, nano"):
        recipe("huge")


def test_a_mix_is_set_by_source_or_whole():
    settings = ["stages.dense.mix.tiny-chat=0.3", "stages.dense.mix.needles=1", 'stages.sparse.mix={"./my.corpus/": 2}']
    changed = override(recipe("debug"), [*settings, "stages.sparse.mix.needles=1e-1", "stages.sparse.mix.tiny-text=0"])
    assert [stage.mix for stage in changed.stages] == [{"tiny-chat": 0.3, "needles": 1}, {}, SPARSE]
    assert [changed.sources(stage) for stage in changed.stages] == [
        {"tiny-chat": 0.3, "needles": 1},
        {"tiny-text": 1},
        {"./my.corpus/": 2, "needles": 0.1},
    ]
    assert recipes.from_dict(json.loads(json.dumps(recipes.to_dict(changed)))) == changed
    assert override(changed, ["stages.dense.mix={}"]).stages[0].mix == {}
    other = override(recipe("nano"), ["corpus=mine", "stages.chat.mix.tiny-chat=0"])  # the corpus's share goes with it
    assert other.sources(other.stages[0]) == {"mine": 0.8, "tiny-chat": 0.12, "needles": 0.08}
    assert other.sources(other.stages[1]) == {"mine": 0.3, "needles": 0.1}


SPARSE = {"./my.corpus/": 2, "needles": 0.1, "tiny-text": 0}


def test_stages_of_their_own_shape_are_counted_in_their_tokens(small):
    changed = override(small, ["stages.indexer.sequence_length=64", "stages.sparse.batch_size=1"])  # 2 x 32, 2 x 64, 1 x 32
    assert [changed.stage_steps(stage) for stage in changed.stages] == [2, 1, 4] and changed.steps == 7
    assert [changed.tokens_by(step) for step in range(9)] == [0, 64, 128, 256, 288, 320, 352, 384, 384]
    assert [changed.place(step) for step in range(7)] == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1), (2, 2), (2, 3)]
    assert [changed.at(step)[0].name for step in range(7)] == ["dense"] * 2 + ["indexer"] + ["sparse"] * 4


def test_nano_dense_is_nano_without_its_mechanisms():
    dense, nano = recipe("nano-dense").model_config(), recipe("nano").model_config()
    assert all(getattr(dense, part) is None for part in ("selection", "experts", "streams", "memory"))
    assert dense.num_nextn_predict_layers == 0 and dense.attention == nano.attention
    assert count(dense).active == pytest.approx(count(nano).active, rel=0.02)
    trained = [stage for stage in recipe("nano").stages if stage.mode != "indexer"]
    shared = [(s.tokens, s.mix, s.lr, s.sequence_length, s.batch_size) for s in trained]
    assert shared == [(s.tokens, s.mix, s.lr, s.sequence_length, s.batch_size) for s in recipe("nano-dense").stages]


def test_steps_fall_into_stages(small):
    assert [small.at(step)[0].name for step in range(small.steps)] == ["dense", "dense", "indexer", "indexer", "sparse", "sparse"]
    with pytest.raises(IndexError):
        small.at(small.steps)
