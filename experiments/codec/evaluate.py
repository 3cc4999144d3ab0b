"""The codec on held-out pictures and clips, beside JPEG, bicubic reduction and H.264 with as many bits.

python experiments/codec/evaluate.py [CODEC] [--corpus NAME] [--limit N] [--out FOLDER]

Equal bits: the codec takes log2(codes) bits for every 8 x 8 pixels of every frame; baselines.py says how each baseline spends as
many. PSNR is of 8-bit pixels, the mean over pictures (at most 60 dB each), for clips over frames and then clips. Writes result.json
and plot.png.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.codec import baselines
from experiments.lib.machine import describe
from experiments.lib.stats import interval
from fourfold.data.corpus import file_checksum
from fourfold.data.omni import Item, OmniCorpus
from fourfold.data.progress import progress
from fourfold.data.shelf import filmed, pictured
from fourfold.files import atomic_file
from fourfold.media.codec import WEIGHTS, Codec, psnr
from fourfold.media.spans import FILM_RATE
from fourfold.paths import find

SEED = 0  # of the codes that are decoded twice
SIZES = {"image": (64, 32), "clip": (32,)}  # pixels
FRAMES = 8
GRIDS = 8  # rows and columns up to which every grid is decoded
SHOWN = 6  # pictures of each group in plot.png
ORIGINAL = "original"
METHODS = {"JPEG": baselines.jpeg, "bicubic": baselines.bicubic}  # of frames
Methods = dict[str, tuple[Tensor, Tensor]]  # by method, the original among them: uint8 [n, F, 3, H, W], bits [n, F] or [n, 1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("codec", nargs="?", default="codec", help="name or folder")
    parser.add_argument("--corpus", default="tiny-omni")
    parser.add_argument("--limit", type=int, default=300, help="pictures or clips of each source and size")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    options = parser.parse_args()
    torch.set_num_threads(1)
    codec, corpus = Codec.load(options.codec), OmniCorpus.open(options.corpus)
    groups = {name: compare(codec, name, clips) for name, clips in held_out(corpus, options.limit).items()}
    weights = find("models", options.codec) / WEIGHTS
    result = {
        **describe(), "seed": SEED, "corpus": corpus.corpus.name, "held_out_sha256": corpus.checksum("held_out"),
        "codec": codec.config.model_dump(mode="json"), "weights_sha256": file_checksum(weights), "codes": codec.codes,
        "parameters": sum(parameter.numel() for parameter in codec.parameters()), "limit": options.limit,
        "groups": {name: scores(codec, made) for name, made in groups.items()}, "grids": grids(codec),
    }  # fmt: skip
    with atomic_file(options.out / "result.json") as path:
        path.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    draw(groups).savefig(options.out / "plot.png", dpi=100)
    print(table(result))


def held_out(corpus: OmniCorpus, limit: int) -> dict[str, Tensor]:
    """uint8 [n, F, 3, H, W] by source and size, evenly spread over each source; pictures smaller than a size are not enlarged."""
    found: dict[str, list[Tensor]] = {}
    for source in corpus.sources:
        items = [item for item in corpus.items("held_out", {source}) if item.kind in SIZES]
        for item in items[:: max(len(items) // limit, 1)][:limit]:
            for size in SIZES[item.kind]:
                frames = _frames(item, size)
                if frames.shape[-2:] == (size, size) and len(frames) == (FRAMES if item.kind == "clip" else 1):
                    found.setdefault(f"{source}, {size} px", []).append(frames)
    return {name: torch.stack(clips) for name, clips in found.items()}


def _frames(item: Item, size: int) -> Tensor:
    return filmed(item.media, size, 8, FILM_RATE, FRAMES)[0] if item.kind == "clip" else pictured(item.media, size, 8)[None]


def compare(codec: Codec, name: str, clips: Tensor) -> Methods:
    """What each method makes of every clip, and the bits it takes for each frame, or for the clip as one."""
    bits = _bits(codec, clips[0, 0])
    made: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for clip in progress(clips, f"comparing {name}", len(clips)):
        frames = clip.permute(0, 2, 3, 1).numpy()
        again = codec.decode(codec.encode(clip[None].float() / 255))[0]
        found = {ORIGINAL: (clip, torch.zeros(1)), "codec": ((again * 255).round().byte(), torch.full((len(clip),), bits))}
        found |= {method: _joined([make(frame, bits) for frame in frames]) for method, make in METHODS.items()}
        if len(clip) > 1:
            film, used = baselines.h264(frames, bits * len(clip))
            found["H.264"] = _joined([(film, used)])
        for method, each in found.items():
            made.setdefault(method, []).append(each)
    return {method: tuple(map(torch.stack, zip(*each, strict=True))) for method, each in made.items()}


def _joined(made: list[baselines.Made]) -> tuple[Tensor, Tensor]:
    """Pixels uint8 [F, 3, H, W] and bits of some frames, or of a clip."""
    pixels = np.concatenate([each.reshape(-1, *each.shape[-3:]) for each, _ in made])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), torch.tensor([float(used) for _, used in made])


def _bits(codec: Codec, frame: Tensor) -> float:
    return math.log2(codec.codes) * frame[0].numel() / codec.config.downsample**2


def scores(codec: Codec, made: Methods) -> dict:
    """PSNR and bits of each method, how far the codec leads with its 95 % interval, and in what share of clips it leads."""
    true = made[ORIGINAL][0].float() / 255
    found = {name: psnr(clips.float() / 255, true) for name, (clips, _) in made.items() if name != ORIGINAL}
    mine = found["codec"].mean(1)
    codes = codec.encode(true).flatten().bincount()
    shares = codes[codes > 0] / codes.sum()
    most = _bits(codec, true[0, 0]) * true.shape[1]
    return {
        "count": len(true), "frames": true.shape[1], "bits": most, "code_entropy_bits": -(shares * shares.log2()).sum().item(),
        "psnr": {name: values.mean().item() for name, values in found.items()},
        "psnr_by_frame": {name: values.mean(0).tolist() for name, values in found.items()},
        "codec_leads": {name: _lead(mine - values.mean(1)) for name, values in found.items() if name != "codec"},
        "bits_taken": {name: made[name][1].sum(1).mean().item() for name in found},
        "fits": {name: (made[name][1].sum(1) <= most + 0.01).float().mean().item() for name in found},
    }  # fmt: skip


def _lead(differences: Tensor) -> dict:
    measured = interval(differences.tolist())
    return {"mean": measured["mean"], "half_width": measured["half_width"], "share": (differences > 0).float().mean().item()}


def grids(codec: Codec) -> dict:
    """Random codes on every grid up to GRIDS x GRIDS, pictures and clips: the shape of their pixels, and whether twice is alike."""
    drawn, side = torch.Generator().manual_seed(SEED), codec.config.downsample
    right = alike = 0
    for frames in (1, 3):
        for rows in range(1, GRIDS + 1):
            for columns in range(1, GRIDS + 1):
                codes = torch.randint(codec.codes, (1, frames, rows, columns), generator=drawn)
                pixels = codec.decode(codes)
                right += pixels.shape == (1, frames, 3, side * rows, side * columns)
                alike += torch.equal(pixels, codec.decode(codes))
    return {"tried": 2 * GRIDS**2, "right_shape": right, "decoded_alike_twice": alike}


def table(result: dict) -> str:
    """PSNR in dB as a markdown table."""
    lines = ["| held out | n | bits a frame | codec | JPEG | bicubic | H.264 | codec over JPEG |", "|---" * 8 + "|"]
    for name, row in result["groups"].items():
        figures = [f"{row['psnr'][each]:.2f}" if each in row["psnr"] else "-" for each in ("codec", "JPEG", "bicubic", "H.264")]
        lead = row["codec_leads"]["JPEG"]
        width = f" ± {lead['half_width']:.2f}" if lead["half_width"] is not None else ""
        about = f"| {name} | {row['count']} | {row['bits'] / row['frames']:g} |"
        lines.append(f"{about} {' | '.join(figures)} | {lead['mean']:+.2f}{width} |")
    overall = statistics.fmean(row["psnr"]["codec"] for row in result["groups"].values())
    return "\n".join([*lines, f"\nmean of groups: {overall:.2f} dB; grids: {result['grids']}"])


def draw(groups: dict[str, Methods]) -> Figure:
    """Originals over what each method makes of them: of pictures some of each group, of clips every second frame of one."""
    height = sum(map(len, groups.values()))
    figure = Figure(figsize=(0.95 * (SHOWN + 1), 0.95 * height), layout="constrained")
    axes = figure.subplots(height, SHOWN, squeeze=False)
    row = 0
    for name, made in groups.items():
        for method, (clips, _) in made.items():
            chosen = clips[0, :: FRAMES // 4] if clips.shape[1] > 1 else clips[:: max(len(clips) // SHOWN, 1), 0][:SHOWN]
            for place, axis in enumerate(axes[row]):
                axis.axis("off")
                if place < len(chosen):
                    axis.imshow(chosen[place].permute(1, 2, 0).numpy(), interpolation="nearest")
            label = f"{name}\n{method}" if method == ORIGINAL else method
            axes[row][0].text(-0.1, 0.5, label, transform=axes[row][0].transAxes, ha="right", va="center", fontsize=7)
            row += 1
    return figure


if __name__ == "__main__":
    main()
