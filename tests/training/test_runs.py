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
from fourfold.errors import ConfigError, FourfoldError
from fourfold.training import checkpoint, recipes
from fourfold.training.loop import Run, train
from fourfold.training.objective import accumulate, set_mode
from fourfold.training.progress import Reporter


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


def test_the_indexer_learns_what_attention_reads(small, tmp_path):
    longer = recipes.override(small, ["stages.dense.tokens=64", "stages.indexer.tokens=3840", "stages.indexer.lr=0.02"])
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
        run = Run(small, tmp_path, reporter)
    tokens, documents = run.data.train.batch(0, 6)
    set_mode(run.model, mode)
    gradients, terms = [], []
    for micro in (0, 2):
        terms.append(accumulate(run.model, tokens, documents, mode, 0.3, micro).terms)
        gradients.append({name: p.grad.clone() for name, p in run.model.named_parameters() if p.grad is not None})
        run.optimizer.zero_grad()
    assert gradients[0].keys() == gradients[1].keys() and gradients[0]
    for name in gradients[0]:
        torch.testing.assert_close(gradients[1][name], gradients[0][name], atol=1e-5, rtol=1e-3)
    for name in terms[0]:
        assert terms[1][name] == pytest.approx(terms[0][name], rel=1e-4, abs=1e-6)


def test_a_failed_compilation_is_one_line_and_the_run_goes_on(small, whole, tmp_path, monkeypatch, capsys):
    def broken(function):
        def fail(*args):
            raise RuntimeError("no compiler\nis here")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    train(dataclasses.replace(small, compile=True), tmp_path / "eager")
    assert "torch.compile failed (no compiler); going on without it\n" in capsys.readouterr().err
    assert_same_run(whole, tmp_path / "eager")
