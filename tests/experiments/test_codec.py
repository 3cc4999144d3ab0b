"""The codec's study: what the baselines spend, and the study from end to end on a corpus of a few pictures."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from experiments.codec import baselines, evaluate
from fourfold.data.corpus import file_checksum
from fourfold.data.omni import Item, OmniCorpus, write_omni
from fourfold.media.codec import WEIGHTS, Codec, CodecConfig, psnr

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "models" / "codec"


def picture(side: int = 32, seed: int = 0) -> np.ndarray:
    """Smooth colours with an edge in them."""
    waves = np.random.default_rng(seed).uniform(0.05, 0.3, (3, 2))
    place = np.arange(side)
    made = [127 + 80 * np.sin(a * place[:, None] + b * place) for a, b in waves]
    made = np.stack(made, -1)
    made[: side // 3] = 255
    return made.round().astype(np.uint8)


def test_coded_data_of_a_jpeg_is_what_the_tables_are_not():
    """A picture of one colour: all but its scan is the same for any size."""
    sizes = []
    for side in (8, 64):
        file = io.BytesIO()
        Image.new("L", (side, side), 77).save(file, "JPEG")
        sizes.append((len(file.getvalue()), baselines.scan_bytes(file.getvalue())))
    (small, few), (large, many) = sizes
    assert large - small == many - few > 0 and few <= 2


@pytest.mark.parametrize("bits", [192, 768, 5000])
@pytest.mark.parametrize("method", [baselines.jpeg, baselines.bicubic])
def test_baselines_spend_what_there_is_and_gain_by_it(method, bits):
    true = picture()
    made, used = method(true, bits)
    more, _ = method(true, 2 * bits)
    assert made.shape == true.shape and made.dtype == np.uint8 and 0.5 * bits < used <= bits
    assert np.square(more - true.astype(float)).mean() <= np.square(made - true.astype(float)).mean() < 5000


def test_a_grey_picture_pays_for_one_channel():
    grey = picture()[..., :1].repeat(3, -1)
    for method in (baselines.jpeg, baselines.bicubic):
        made, _ = method(grey, 192)
        assert (made == made[..., :1]).all()
    made, used = baselines.bicubic(grey, 8 * 32 * 32)  # enough for every pixel as it is
    assert np.array_equal(made, grey) and used == 8 * 32 * 32


def test_h264_spends_more_where_there_is_more():
    clip = np.stack([np.roll(picture(), step, 1) for step in range(8)])
    found = [baselines.h264(clip, bits) for bits in (1536, 6144)]
    assert all(made.shape == clip.shape and used <= bits for (made, used), bits in zip(found, (1536, 6144), strict=True))
    errors = [np.square(made - clip.astype(float)).mean() for made, _ in found]
    assert errors[1] < errors[0]


def test_the_study_from_end_to_end(tmp_path, tokenizer, monkeypatch, capsys):
    def encoded(kind: str, *frames: np.ndarray) -> bytes:
        file = io.BytesIO()
        first, *rest = map(Image.fromarray, frames)
        first.save(file, kind, **({"save_all": True, "append_images": rest, "lossless": True, "duration": 125} if rest else {}))
        return file.getvalue()

    moving = [np.roll(picture(), step, 1) for step in range(8)]
    items = [Item(f"e{n}", "emoji", "image", encoded("PNG", picture(64, n)), "it", str(n)) for n in range(3)]
    items.append(Item("c", "clips", "clip", encoded("WEBP", *moving), "it moves", "c"))
    (tmp_path / "corpus").mkdir()
    write_omni(tmp_path / "corpus", "few", {"held_out": items}, tokenizer)
    codec = Codec(CodecConfig(levels=(4, 4), widths=(4, 8))).init_weights(0)
    codec.save(tmp_path / "codec")
    given = ["evaluate", str(tmp_path / "codec"), "--corpus", str(tmp_path / "corpus"), "--limit", "2", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", given)
    evaluate.main()
    result = json.loads((tmp_path / "result.json").read_text())
    groups = result["groups"]
    assert {name: (row["count"], row["bits"]) for name, row in groups.items()} == {
        "clips, 32 px": (1, 8 * 4 * 16), "emoji, 64 px": (2, 4 * 64), "emoji, 32 px": (2, 4 * 16),
    }  # fmt: skip
    assert result["grids"] == {"tried": 128, "right_shape": 128, "decoded_alike_twice": 128}
    large = groups["emoji, 64 px"]
    true = torch.from_numpy(np.stack([picture(64, n) for n in (0, 1)])).permute(0, 3, 1, 2)
    again = (codec.decode(codec.encode(true[:, None].float() / 255)) * 255).round() / 255
    error = (again[:, 0] - true / 255).square().flatten(1).mean(1)
    assert large["psnr"]["codec"] == pytest.approx((-10 * error.log10()).mean().item(), abs=1e-3)
    assert large["codec_leads"]["JPEG"]["mean"] == pytest.approx(large["psnr"]["codec"] - large["psnr"]["JPEG"], abs=1e-4)
    assert "H.264" in groups["clips, 32 px"]["psnr"] and large["fits"]["bicubic"] == 1
    assert (tmp_path / "plot.png").stat().st_size > 10_000 and "| emoji, 64 px | 2 | 256 |" in capsys.readouterr().out


def test_the_figures_are_those_of_the_codec_that_ships():
    result = json.loads((ROOT / "experiments" / "codec" / "result.json").read_text())
    assert result["weights_sha256"] == file_checksum(SHIPPED / WEIGHTS)
    leads = [row["codec_leads"][method] for row in result["groups"].values() for method in ("JPEG", "bicubic")]
    assert len(leads) == 14 and all(lead["mean"] > lead["half_width"] for lead in leads)


@pytest.mark.parametrize("are_clips", [False, True])
def test_the_codec_that_ships_is_nearer_than_jpeg_and_bicubic(are_clips):
    """On average over eight held-out pictures of each source, and over the last frames of as many clips, at 32 pixels."""
    codec, corpus = Codec.load(SHIPPED), OmniCorpus.open(ROOT / "corpora" / "tiny-omni")
    groups = [clips for name, clips in evaluate.held_out(corpus, 8).items() if name.endswith("32 px")]
    true = torch.cat([clips for clips in groups if (clips.shape[1] > 1) == are_clips]).float() / 255
    mine, bits = psnr(codec.decode(codec.encode(true)), true)[:, -1], 16 * np.log2(codec.codes)
    last = (true[:, -1].permute(0, 2, 3, 1) * 255).round().byte().numpy()
    assert len(last) == (16 if are_clips else 24)
    for method in (baselines.jpeg, baselines.bicubic):
        made, used = zip(*(method(frame, bits) for frame in last), strict=True)
        theirs = psnr(torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2) / 255, true[:, -1])
        assert np.mean(used) > 0.8 * bits and mine.mean() > theirs.mean() + 0.5
