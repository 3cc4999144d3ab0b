"""Whole runs: resumed equals uninterrupted, and what happens when a run is killed, interrupted, out of disk or damaged."""

import dataclasses
import errno
import json
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

import fourfold
from fourfold.cli.main import main
from fourfold.data.corpus import Corpus, write_corpus
from fourfold.data.documents import Document
from fourfold.data.packing import PackedTokens
from fourfold.errors import CheckpointError, ConfigError, DataError, FourfoldError
from fourfold.formats import ours
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from fourfold.training import checkpoint, recipes
from fourfold.training.data import TrainingData
from fourfold.training.loop import Run, train
from fourfold.training.objective import accumulate, set_mode
from fourfold.training.progress import Reporter
from fourfold.training.start import start_from
from tests.compare import assert_close


def state(folder, step=6):
    return torch.load(checkpoint.folder_of(folder, step) / checkpoint.STATE, weights_only=True)


def assert_same_bits(a, b):
    if isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype and torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same_bits(a[key], b[key])
    elif isinstance(a, list | tuple):
        for x, y in zip(a, b, strict=True):
            assert_same_bits(x, y)
    else:
        assert a == b


def metrics(folder):
    """All that must be the same: not the speed, and the held-out figures of the last step alone (one stopped early has more)."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    loose = ("tokens_per_second", "held_out")
    return [{k: v for k, v in row.items() if not k.startswith(loose)} for row in rows[:-1]] + [rows[-1] | {loose[0]: 0}]


def assert_same_run(a, b):
    assert_same_bits(state(a), state(b))
    assert metrics(a) == metrics(b) and len(metrics(a)) == 6


@pytest.fixture
def whole(small, tmp_path):
    train(small, tmp_path / "whole")
    return tmp_path / "whole"


def test_a_run_leaves_a_folder_that_can_be_used(whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {
        "recipe.json",
        "run.json",
        "metrics.jsonl",
        "loss.png",
        "experts.png",
        "residual_gain.png",
        "indexer.png",
        "model",
    }
    assert checkpoint.steps_of(whole) == [4, 6]  # the newest two
    rows = metrics(whole)
    assert [row["stage"] for row in rows] == ["dense"] * 2 + ["indexer"] * 2 + ["sparse"] * 2
    assert "lm_loss" not in rows[2] and rows[2]["loss"] == rows[2]["indexer_kl"] and rows[5]["held_out_bits_per_byte"] > 0
    model = fourfold.load(whole / "model")
    assert torch.equal(model.layers[1].ffn.router.bias, state(whole)["model"]["layers.1.ffn.router.bias"])
    assert model(torch.arange(40, 60)[None]).logits.isfinite().all()
    assert f"{rows[5]['held_out_bits_per_byte']:.4f}" in (whole / "model" / "README.md").read_text()


@pytest.mark.parametrize(("stop", "dtype"), [(2, "float32"), (3, "float32"), (3, "bfloat16"), (5, "float32")])
def test_resumed_is_uninterrupted(small, tmp_path, stop, dtype):
    small = dataclasses.replace(small, dtype=dtype)
    train(small, tmp_path / "whole")
    train(small, tmp_path / "parts", steps=stop)
    train(small, tmp_path / "parts", resume=True)
    assert_same_run(tmp_path / "whole", tmp_path / "parts")


def other_corpus(folder):
    """Long plain texts and another name, for a mix."""
    documents = [Document(f"o{i}", "made", "the old dog hears the bird. then it chases one cat. " * 9) for i in range(20)]
    folder.mkdir()
    write_corpus(folder, "other", {"train": documents}, Tokenizer.train([d.text for d in documents], 300))
    return folder


@pytest.mark.parametrize("stop", [1, 3, 4])
def test_a_run_of_mixed_stages_of_several_shapes_resumes(small, tmp_path, stop):
    other = other_corpus(tmp_path / "other")
    mixes = [
        f"stages.{name}.mix={json.dumps({small.corpus: 0.5, str(other): 0.3, 'needles': 0.2})}" for name in ("dense", "sparse")
    ]
    shapes = ["model.max_position_embeddings=256", "stages.indexer.sequence_length=64", "stages.indexer.batch_size=1"]
    small = recipes.override(small, [*mixes, *shapes, "stages.sparse.sequence_length=48", "checkpoint_every=1"])
    train(small, tmp_path / "whole")
    train(small, tmp_path / "parts", steps=stop)
    summary = train(small, tmp_path / "parts", resume=True)
    assert_same_bits(state(tmp_path / "whole", small.steps), state(tmp_path / "parts", small.steps))
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "parts")
    assert [row["tokens"] for row in metrics(tmp_path / "parts")] == [64, 128, 192, 256, 352] and summary.tokens == 352
    about = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert f"{other}/train-00000.parquet" in about["data"] and f"{small.corpus}/train-00000.parquet" in about["data"]
    said = (tmp_path / "whole" / "model" / "README.md").read_text()
    assert f"50% {small.corpus}, 30% {other}, 20% needles | 128 | 2 x 32 |" in said and "128 | 1 x 64 |" in said


def test_a_source_goes_on_where_the_stage_before_left_off(small):
    small = recipes.override(small, ["stages.sparse.sequence_length=16", "stages.indexer.batch_size=1"])
    data = TrainingData.open(small)
    assert [stage.first for stage in data.stages] == [{small.corpus: 0}, {small.corpus: 4}, {small.corpus: 0}]
    rows = PackedTokens(Corpus.open(small.corpus), data.tokenizer, 32, "train", small.seed, every=small.document_stride)
    seen = torch.cat([data.batch(step).tokens for step in range(6)])  # two steps of two rows, four of one
    assert torch.equal(seen, torch.cat([rows.batch(place, 1)[0] for place in range(8)]))
    assert data.batch(6).tokens.shape == (2, 17)


def test_a_killed_run_resumes(small, whole, tmp_path):
    killed = tmp_path / "killed"
    source = "import sys, torch; torch.set_num_threads(1); from fourfold.cli.main import main; sys.exit(main(sys.argv[1:]))"
    changed = recipes.to_dict(small)
    settings = [f"{key}={changed[key]}" for key in ("corpus", "sequence_length", "batch_size", "eval_rows", "checkpoint_every")]
    settings += [f"stages.{stage.name}.tokens={stage.tokens}" for stage in small.stages]
    command = [sys.executable, "-c", source, "train", "debug", "--out", str(killed), *(f"--set={s}" for s in settings)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not checkpoint.steps_of(killed) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.kill()
    process.wait()
    assert checkpoint.steps_of(killed)
    with (killed / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "loss"')  # as a kill in the middle of a line would leave it
    (killed / "checkpoints" / ".step-9.partial-1").mkdir()
    train(small, killed, resume=True)
    assert_same_run(whole, killed)
    assert not list((killed / "checkpoints").glob(".*"))


def interrupting(monkeypatch, step, number):
    before = Run.advance

    def advance(self, total):
        if self.step == step:
            os.kill(os.getpid(), number)
        before(self, total)

    monkeypatch.setattr(Run, "advance", advance)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_step_and_says_how_to_go_on(settings, whole, tmp_path, monkeypatch, capsys, number):
    stopped = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        interrupting(patch, 2, number)
        assert main(["train", "debug", "--out", str(stopped), *(f"--set={s}" for s in settings)]) == 130
    said = capsys.readouterr().err
    assert f"fourfold train debug --resume --out {stopped}" in said and checkpoint.steps_of(stopped) == [2, 3]
    assert main(["train", "debug", "--out", str(stopped), "--resume", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["step"], summary["interrupted"], summary["model"]) == (6, False, str(stopped / "model"))
    assert_same_run(whole, stopped)


def test_a_full_disk_is_one_line_and_loses_nothing(small, whole, tmp_path, monkeypatch):
    full, save = tmp_path / "full", torch.save

    def failing(value, file):
        if value["step"] == 4:
            file.write(b"some of it")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(value, file)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", failing)
        with pytest.raises(FourfoldError, match="step-4: no space left"):
            train(small, full)
    assert [path.name for path in (full / "checkpoints").iterdir()] == ["step-2"]
    train(small, full, resume=True)
    assert_same_run(whole, full)


@pytest.mark.parametrize("damage", ["truncated", "altered", "no checksum"])
def test_a_damaged_checkpoint_is_skipped(small, whole, tmp_path, capsys, damage):
    train(small, tmp_path / "hurt", steps=4)
    newest = checkpoint.folder_of(tmp_path / "hurt", 4)
    content = bytearray((newest / checkpoint.STATE).read_bytes())
    content[len(content) // 2] ^= 1
    if damage == "no checksum":
        (newest / checkpoint.CHECKSUM).unlink()
    else:
        (newest / checkpoint.STATE).write_bytes(content[: len(content) // 2] if damage == "truncated" else content)
    train(small, tmp_path / "hurt", resume=True)
    said = capsys.readouterr().err
    assert "skipped" in said and "step-4" in said and "after step 2" in said
    assert_same_run(whole, tmp_path / "hurt")


def test_with_no_whole_checkpoint_left_nothing_is_overwritten(small, tmp_path):
    train(small, tmp_path / "run", steps=2)
    (checkpoint.folder_of(tmp_path / "run", 2) / checkpoint.STATE).write_bytes(b"")
    with pytest.raises(FourfoldError, match="no whole checkpoint"):
        train(small, tmp_path / "run", resume=True)


def test_folders_and_options_that_do_not_fit(small, whole, tmp_path, capsys):
    with pytest.raises(ConfigError, match="already holds files; add --resume"):
        train(small, whole)
    with pytest.raises(ConfigError, match="holds no run"):
        train(small, tmp_path / "nothing", resume=True)
    assert main(["train", "debug", "--resume", "--out", str(whole), "--set", "seed=1"]) == 2
    assert main(["train", "debug", "--set", "optimizer.lrr=1"]) == 2
    assert "optimizer.lr" in capsys.readouterr().err
    about = json.loads((whole / "run.json").read_text())
    about["data"]["tokenizer"] = "other"
    (whole / "run.json").write_text(json.dumps(about))
    with pytest.raises(FourfoldError, match="has changed since"):
        train(small, whole, resume=True)


def edited(name, change):
    def damage(folder):
        values = json.loads((folder / name).read_text())
        change(values)
        (folder / name).write_text(json.dumps(values))

    return damage


def holding(name, content):
    return lambda folder: (folder / name).write_text(content)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (holding("recipe.json", "{}"), "recipe.json: recipe is missing"),
        (holding("recipe.json", "[]"), "recipe.json: must hold one JSON object"),
        (holding("recipe.json", '{"recipe": {}, "model": {}}'), "recipe.json: name: does not fit"),
        (holding("run.json", "{}"), "run.json: data is missing"),
        (holding("metrics.jsonl", "5\n"), "metrics.jsonl: line 1 is not a row"),
        (holding("metrics.jsonl", '{"step"\n{"step": 2}\n'), "metrics.jsonl: line 1 is not a row"),
        (holding("checkpoints/step-2/checksum.json", "[]"), "no whole checkpoint is left"),
        (edited("recipe.json", lambda values: values["model"].update(hidden_size=64)), "recipe.json: its model is not what"),
        (edited("recipe.json", lambda values: values["recipe"].update(name="nano")), "is a run of nano, not debug"),
    ],
)
def test_a_damaged_run_is_refused_in_one_line(small, tmp_path, damage, said):
    train(small, tmp_path, steps=2)
    damage(tmp_path)
    with pytest.raises(FourfoldError) as caught:
        train(small, tmp_path, resume=True)
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_run_goes_on_only_under_the_recipe_it_began_with(small, tmp_path):
    train(small, tmp_path / "run", steps=3)
    with pytest.raises(ConfigError, match="--steps 2: .* is at step 3 already"):
        train(small, tmp_path / "run", resume=True, steps=2)
    train(dataclasses.replace(small, seed=5), tmp_path / "other", steps=1)
    (tmp_path / "run" / "recipe.json").write_bytes((tmp_path / "other" / "recipe.json").read_bytes())
    with pytest.raises(CheckpointError, match="recipe.json: is not the recipe this run began with"):
        train(small, tmp_path / "run", resume=True)


@pytest.mark.parametrize("setting", ["model.hidden_size=64", "optimizer.matrices=adamw"])
def test_a_state_that_does_not_fit_is_one_line(small, tmp_path, setting):
    train(small, tmp_path, steps=1)
    with Reporter(6) as reporter:
        other = Run(recipes.override(small, [setting]), tmp_path, reporter)
    digest = json.loads((checkpoint.folder_of(tmp_path, 1) / checkpoint.CHECKSUM).read_text())["recipe"]
    with pytest.raises(
        CheckpointError, match="state.pt: does not fit this model and optimiser [(].*[)]; use the version"
    ) as caught:
        checkpoint.load(tmp_path, 1, other.model, other.optimizer, digest)
    assert "\n" not in str(caught.value) and not isinstance(caught.value, checkpoint.DamagedError)


def test_an_unwritable_folder_is_noticed_before_anything_is_read(small, tmp_path):
    (tmp_path / "file").write_text("")
    absent = dataclasses.replace(small, corpus="absent")
    with pytest.raises(FourfoldError, match="file/run: cannot be written"):
        train(absent, tmp_path / "file" / "run")
    with pytest.raises(DataError, match="absent"):
        train(absent, tmp_path / "run")


def test_a_corpus_with_nothing_held_out_can_be_trained_on(small, small_corpus, tmp_path, capsys):
    tokenizer = Tokenizer.load(small_corpus / "tokenizer")
    documents = list(Corpus.open(small_corpus).documents("held_out"))
    (tmp_path / "corpus" / "tokenizer").mkdir(parents=True)
    tokenizer.save(tmp_path / "corpus" / "tokenizer")
    write_corpus(tmp_path / "corpus", "one", {"train": documents}, tokenizer)
    summary = train(dataclasses.replace(small, corpus=str(tmp_path / "corpus"), document_stride=1, eval_every=2), tmp_path / "run")
    assert summary.held_out_loss is None and capsys.readouterr().err.count("has no held_out split") == 1
    assert "Held-out" not in (tmp_path / "run" / "model" / "README.md").read_text()
    assert fourfold.load(tmp_path / "run" / "model") is not None


def weights(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()}


def test_each_stage_moves_only_what_it_trains(small, tmp_path):
    with Reporter(6) as reporter:
        run = Run(small, tmp_path, reporter)
        snapshots = [weights(run)]
        for _ in range(6):
            run.advance(99)
            snapshots.append(weights(run))
    indexers = {name for name, _ in run.model.indexer_parameters()}
    moved = [{name for name in a if not torch.equal(a[name], b[name])} for a, b in zip(snapshots, snapshots[1:], strict=False)]
    parameters = {name for name, _ in run.model.named_parameters()}
    assert not (moved[0] | moved[1]) & indexers and len(moved[0]) > 50
    assert moved[2] and moved[2] | moved[3] <= indexers  # not even a router's bias
    assert moved[4] & indexers and len((moved[4] | moved[5]) & parameters) > 0.9 * len(parameters)


def test_a_run_may_start_from_the_weights_of_a_checkpoint(small, whole, tmp_path):
    longer = [f"init={whole / 'model'}", "stages.dense.tokens=0", "stages.sparse.tokens=0"]
    train(recipes.override(small, longer), tmp_path / "on")
    before, after = (fourfold.load(folder / "model").state_dict() for folder in (whole, tmp_path / "on"))
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved and all(".indexer." in name for name in moved)
    loose = [
        f"init={whole / 'model'}",
        "model.bias_update_speed=0",
        "model.aux_loss_alpha=0.5",
        "model.max_position_embeddings=9999",
    ]
    train(recipes.override(small, [*loose, "stages.dense.tokens=0", "stages.indexer.tokens=0"]), tmp_path / "loose", steps=1)
    with pytest.raises(ConfigError, match="init: .* has another hidden_size"):
        train(recipes.override(small, [f"init={whole / 'model'}", "model.hidden_size=64"]), tmp_path / "other")


def test_a_run_may_start_from_an_average_of_checkpoints(small, whole, tmp_path):
    """Weight by weight, in turn; names of recipes written before stay as they were."""
    other = Run(recipes.override(small, ["seed=5"]), tmp_path / "other", Reporter(60))
    ours.save(other.model, tmp_path / "model", other.data.tokenizer)
    first, second = (fourfold.load(folder, dtype="float32").state_dict() for folder in (whole / "model", tmp_path / "model"))
    shares = {str(tmp_path / "model"): 0.25}
    blended = recipes.override(small, [f"init={whole / 'model'}", f"blend={json.dumps(shares)}"])
    model = Run(blended, tmp_path / "run", Reporter(60)).model
    for name, weight in model.state_dict().items():
        if weight.is_floating_point():
            assert_close(weight.float(), 0.75 * first[name] + 0.25 * second[name])
    assert "blend" not in recipes.to_dict(small) and recipes.from_dict(recipes.to_dict(blended)) == blended
    with pytest.raises(ConfigError, match="blend: needs weights to average into; set init too"):
        recipes.override(small, [f"blend={json.dumps(shares)}"])
    with pytest.raises(ConfigError, match=r"blend\..*: 1.5 does not fit"):
        recipes.override(small, [f"init={whole / 'model'}", 'blend={"nano": 1.5}'])
    narrow = Transformer(model.config.but(hidden_size=64), other.data.token_classes).init_weights(0)
    ours.save(narrow, tmp_path / "narrow", other.data.tokenizer)
    with pytest.raises(ConfigError, match="blend: .* has another hidden_size"):
        start_from(model, str(whole / "model"), {str(tmp_path / "narrow"): 0.5})


def test_the_indexer_learns_what_attention_reads(small, tmp_path):
    longer = recipes.override(small, ["stages.dense.tokens=64", "stages.indexer.tokens=3840", "stages.indexer.lr=0.002"])
    with Reporter(60) as reporter:
        run = Run(longer, tmp_path, reporter)
        losses = []
        with torch.no_grad():  # attention worth learning: at the start it is nearly even
            for layer in run.model.layers:
                layer.attention.q_b_proj.weight.mul_(100)
        for _ in range(60):
            run.advance(99)
            losses.append(run.row.get("indexer_kl", torch.inf))
    assert sum(losses[-5:]) < 0.8 * sum(losses[1:6])


def test_a_dead_indexer_is_said_once(small, tmp_path, capsys):
    with Reporter(6) as reporter:
        run = Run(recipes.override(small, ["stages.dense.tokens=0", "stages.indexer.lr=0"]), tmp_path, reporter)
        with torch.no_grad():
            run.model.layers[1].attention.indexer.weights_proj.weight.zero_()
        run.advance(99)
        run.advance(99)
    said = capsys.readouterr().err
    assert run.row["dead_indexers"] == [1] and run.row["indexer_dead"] == 1.0 and said.count("indexer 1 is dead") == 1


def test_a_loss_that_is_not_finite_stops_the_run(small, tmp_path):
    with Reporter(6) as reporter:
        run = Run(small, tmp_path, reporter)
        with torch.no_grad():
            run.model.norm.weight.fill_(torch.nan)
        before = weights(run)
        with pytest.raises(FourfoldError, match="step 1: the loss or its gradient is not finite"):
            run.advance(99)
    assert_same_bits(before["layers.0.attention.o_proj.weight"], run.model.layers[0].attention.o_proj.weight.detach())


@pytest.mark.parametrize("mode", ["dense", "indexer", "sparse"])
def test_micro_batches_add_up(small, tmp_path, mode):
    with Reporter(6) as reporter:
        run = Run(dataclasses.replace(small, batch_size=6), tmp_path, reporter)
    rows = run.data.batch(0)
    set_mode(run.model, mode)
    gradients, terms = [], []
    for micro in (0, 2):
        terms.append(accumulate(run.model, rows, mode, 0.3, micro).terms)
        gradients.append({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        run.optimizer.zero_grad()
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], atol=1e-5, rtol=1e-3)
    for name in terms[0]:
        assert terms[1][name] == pytest.approx(terms[0][name], rel=1e-4, abs=1e-6)


def test_a_held_out_loss_that_is_not_finite_stops_the_run(small, tmp_path, monkeypatch):
    monkeypatch.setattr(Run, "evaluate", lambda *args: {"loss": torch.nan, "bits_per_byte": torch.nan})
    with pytest.raises(FourfoldError, match="step 6: the held-out loss is not finite"):
        train(small, tmp_path)
    assert checkpoint.steps_of(tmp_path) == [2, 4] and not (tmp_path / "model").exists()


@pytest.mark.parametrize("failing", ["at once", "in evaluation"])
def test_a_failed_compilation_is_one_line_and_the_run_goes_on(small, whole, tmp_path, monkeypatch, capsys, failing):
    def broken(function):
        def fail(*args):
            if failing == "at once" or not torch.is_grad_enabled():
                raise RuntimeError("no compiler\nis here")
            return function(*args)

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    train(dataclasses.replace(small, compile=True), tmp_path / "eager")
    assert capsys.readouterr().err.count("torch.compile failed (no compiler); going on without it\n") == 1
    assert_same_run(whole, tmp_path / "eager")
