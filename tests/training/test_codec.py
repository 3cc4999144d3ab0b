"""Training the codec: its data, its loss, and that a resumed run is an uninterrupted one."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fourfold.cli.main import main
from fourfold.data.omni import Item, write_omni
from fourfold.errors import CheckpointError, ConfigError, DataError, FourfoldError
from fourfold.media.codec import Codec, psnr
from fourfold.media.images import fit
from fourfold.training import checkpoint, codec
from fourfold.training.codec import CodecRecipe, override, train
from fourfold.training.codec_data import CodecData, _varied, as_numbers
from tests.compare import assert_close

SETTINGS = ["steps=6", "pixels=20480", "model.levels=4,4", "model.widths=8,12", "model.encoder_blocks=1", "threads=1"]
SETTINGS += ["model.decoder_blocks=1", "eval_every=3", "eval_items=4", "checkpoint_every=2", "lr=0.01"]


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def animated(frames: list[np.ndarray]) -> bytes:
    file = io.BytesIO()
    first, *rest = (Image.fromarray(frame) for frame in frames)
    first.save(file, "WEBP", save_all=True, append_images=rest, lossless=True, duration=125)
    return file.getvalue()


def drawn(side: int, seed: int, grey: bool = False) -> np.ndarray:
    """A rectangle of one colour on another."""
    random = np.random.default_rng(seed)
    ground, colour = random.integers(0, 256, (2, 1, 1, 3), dtype=np.uint8)
    picture = np.broadcast_to(ground, (side, side, 3)).copy()
    top, left, bottom, right = random.integers(1, side // 2, 4)
    picture[top : side - bottom, left : side - right] = colour
    return picture[:, :, 0] if grey else picture


def items(count: int, first: int) -> list[Item]:
    """`count` each of emoji, clothes and clips, one picture that is no square and one sound."""
    made = []
    for n in range(first, first + count):
        made.append(Item(f"emoji{n}", "emoji", "image", png(drawn(64, n)), "a thing", str(n)))
        made.append(Item(f"cloth{n}", "cloth", "image", png(drawn(28, n, grey=True)), "a shirt", str(n)))
        moving = [np.roll(drawn(32, n), step, axis=1) for step in range(8)]
        made.append(Item(f"clip{n}", "clips", "clip", animated(moving), "it moves", str(n)))
    wide = Item(f"wide{first}", "emoji", "image", png(drawn(64, first)[:32]), "a wide thing", "wide")
    return [*made, wide, Item(f"sound{first}", "sounds", "sound", b"OggS", "a bell", "bell")]


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, tokenizer) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    write_omni(folder, "pictures", {"train": items(6, 0), "held_out": items(3, 100)}, tokenizer)
    return folder


@pytest.fixture(scope="session")
def settings(pictures) -> list[str]:
    return [f"corpus={pictures}", *SETTINGS]


@pytest.fixture(scope="session")
def recipe(settings) -> CodecRecipe:
    return override(CodecRecipe(), settings)


@pytest.fixture(scope="session")
def whole(recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that never stopped; not to be changed."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    train(recipe, folder)
    return folder


def rows(folder: Path) -> list[dict]:
    """All that must be the same: not the speed."""
    loose = ("tokens_per_second", "images_per_second")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(line).items() if name not in loose} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return Codec.load(folder / "model").state_dict()


def test_pictures_and_clips_come_at_the_sizes_that_are_drawn(pictures):
    data = CodecData.open(str(pictures), 8, 1, 2)
    assert {name: tuple(pool.shape) for name, pool in data.train.items()} == {
        "clips": (6, 8, 3, 32, 32),
        "large": (6, 1, 3, 64, 64),
        "reduced": (6, 1, 3, 32, 32),
        "small": (6, 1, 3, 32, 32),
    }
    assert [len(pool) for pool in data.held_out.values()] == [2, 2, 2, 2]
    cloth = torch.from_numpy(drawn(28, 0, grey=True)).expand(3, -1, -1)
    assert torch.equal(data.train["small"][0, 0], fit(cloth, 32, 8))
    assert torch.equal(data.train["clips"][2, 3], torch.from_numpy(np.roll(drawn(32, 2), 3, axis=1)).permute(2, 0, 1))


def test_a_batch_follows_from_seed_and_step_alone(pictures):
    data = CodecData.open(str(pictures), 8, 1, 2)
    batch = data.batch(5, 0, 4 * 16_384)
    assert [tuple(part.shape[:2]) for part in batch] == [(2, 8), (4, 1), (16, 1), (16, 1)]
    data.batch(6, 0, 4 * 16_384)
    assert all(torch.equal(a, b) for a, b in zip(batch, data.batch(5, 0, 4 * 16_384), strict=True))
    for other in (data.batch(6, 0, 4 * 16_384), data.batch(5, 1, 4 * 16_384)):
        assert not torch.equal(batch[2], other[2])
    assert all(0 <= part.min() and part.max() <= 1 for part in batch)


def test_variation_keeps_shapes_and_treats_a_clip_as_one(pictures):
    clips = as_numbers(CodecData.open(str(pictures), 8, 1, 2).train["clips"]).repeat(20, 1, 1, 1, 1)
    varied = _varied(clips, torch.Generator().manual_seed(0))
    same = (varied == clips).flatten(1).all(1)
    mirrored = (varied == clips.flip(-1)).flatten(1).all(1)
    assert 0.25 < same.float().mean() < 0.5 and 0.25 < mirrored.float().mean() < 0.5
    for made, clip in zip(varied[~same & ~mirrored], clips[~same & ~mirrored], strict=True):
        flipped = next(c for c in (clip, clip.flip(-1)) if _is_affine(c, made))
        assert flipped.shape == made.shape


def _is_affine(clip: torch.Tensor, made: torch.Tensor) -> bool:
    """Whether each channel of `made` is a line of that of `clip`, the same in every frame."""
    for x, y in zip(clip.unbind(1), made.unbind(1), strict=True):
        basis = torch.stack([x.flatten(), torch.ones(x.numel())], 1)
        fitted = basis @ torch.linalg.lstsq(basis, y.flatten()[:, None], driver="gelsd").solution
        if (fitted[:, 0] - y.flatten()).abs().max() > 1e-4:
            return False
    return True


def test_a_run_leaves_a_folder_that_can_be_used(recipe, whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {"recipe.json", "run.json", "metrics.jsonl", "loss.png", "psnr.png", "model", "checkpoints"}
    found = rows(whole)
    assert [row["step"] for row in found] == [1, 2, 3, 4, 5, 6]
    assert [row["tokens"] for row in found] == [320 * step for step in range(1, 7)]
    assert [("held_out_psnr" in row) for row in found] == [False, False, True, False, False, True]
    card = (whole / "model" / "README.md").read_text()
    assert f"| frames of clips of 32 pixels | {found[-1]['held_out_psnr_clips']:.2f} |" in card and "4 bits for each 8 x 8" in card
    made = Codec.load(whole / "model")
    pool = as_numbers(CodecData.open(recipe.corpus, 8, 1, 4).held_out["large"])
    assert psnr(made.decode(made.encode(pool)), pool).mean().item() == pytest.approx(found[-1]["held_out_psnr_large"], abs=1e-4)


def test_the_loss_is_its_terms_by_hand(recipe, tmp_path):
    run = codec.CodecRun(recipe, tmp_path, None)
    clips = run.data.batch(0, 0, 4 * 8192)[0]
    with torch.no_grad():
        off = run.model(clips) - clips
    edges = (off[..., 1:] - off[..., :-1]).abs().mean() + (off[..., 1:, :] - off[..., :-1, :]).abs().mean()
    terms = run._learn(clips, 0.5)
    expected = off.abs().mean() + codec.SQUARES * (off**2).mean() + codec.EDGES * edges
    assert_close(torch.tensor(terms["loss"]), expected)
    mine = run.model.encoder[1].weight.grad.clone()
    run.optimizer.zero_grad()
    run._learn(clips, 1.0)
    assert_close(2 * mine, run.model.encoder[1].weight.grad)


def test_it_learns(recipe, tmp_path):
    train(recipe.but(steps=40, eval_every=0, **{"model.levels": (8, 8, 8)}), tmp_path / "run")
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])


@pytest.mark.parametrize("stop", [2, 5])
def test_resumed_is_uninterrupted(recipe, whole, tmp_path, stop):
    parts = tmp_path / "parts"
    assert train(recipe, parts, steps=stop).step == stop
    summary = train(recipe, parts, resume=True)
    expected, found = weights(whole), weights(parts)
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    for mine, other in zip(rows(whole), rows(parts), strict=True):
        shared = mine.keys() & other.keys()  # a part is evaluated where it stops
        assert {name: mine[name] for name in shared} == {name: other[name] for name in shared} and "loss" in shared
    assert checkpoint.steps_of(parts) == [4 if stop == 2 else 5, 6]
    assert (summary.step, summary.tokens, summary.loss) == (6, 1920, rows(whole)[-1]["loss"])


def test_the_command_trains_and_resumes(settings, tmp_path, capsys):
    chosen = [f"--set={each}" for each in settings]
    assert main(["train", "codec", "--out", str(tmp_path / "run"), "--steps", "2", *chosen]) == 0
    assert main(["train", "codec", "--out", str(tmp_path / "run"), "--resume", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["step"] == 6 and Codec.load(summary["model"]).codes == 16
    assert main(["train", "codec", "--set", "model.width=3"]) == 2
    assert "width is not a known field" in capsys.readouterr().err


def test_settings_are_read_and_checked():
    recipe = override(CodecRecipe(), ["steps=1_000", "lr=1e-4", "model.levels=[8,5,5,5]", "corpus=other"])
    assert (recipe.steps, recipe.lr, recipe.model.levels, recipe.corpus) == (1000, 1e-4, (8, 5, 5, 5), "other")
    for setting, said in (("steps", "has no value"), ("steps=0", "steps"), ("model.levels=1,2", "levels"), ("x.y=1", "x")):
        with pytest.raises(ConfigError, match=said):
            override(CodecRecipe(), [setting])


def test_the_rate_rises_and_falls():
    recipe = CodecRecipe(steps=100, lr=2.0, warmup=0.1, final=0.5)
    rates = [recipe.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.2) and max(rates) == pytest.approx(2.0, abs=0.01) and rates[99] == pytest.approx(1.0)


def test_what_cannot_be_trained_or_resumed_is_said_in_one_line(recipe, pictures, tmp_path, tokenizer):
    train(recipe, tmp_path / "run", steps=2)
    with pytest.raises(ConfigError, match="--steps 1: .* at step 2 already"):
        train(recipe, tmp_path / "run", steps=1, resume=True)
    with pytest.raises(ConfigError, match="already holds files"):
        train(recipe, tmp_path / "run")
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps(about | {"data": {"another": "corpus"}}))
    with pytest.raises(FourfoldError, match="has changed since"):
        train(recipe, tmp_path / "run", resume=True)
    (tmp_path / "run" / "recipe.json").write_text('{"codec": {"steps": -1}}')
    with pytest.raises(CheckpointError, match="recipe.json: steps"):
        train(recipe, tmp_path / "run", resume=True)
    silent = tmp_path / "silent"
    silent.mkdir()
    write_omni(silent, "silent", {"train": items(0, 0)[1:]}, tokenizer)
    with pytest.raises(DataError, match="has no pictures"):
        train(recipe.but(corpus=str(silent)), tmp_path / "other")


def test_a_loss_that_is_no_number_stops_the_run(recipe, tmp_path):
    with pytest.raises(FourfoldError, match="not finite; start again with a lower lr"):
        train(recipe.but(lr=1e30), tmp_path / "run")
