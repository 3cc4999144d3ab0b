"""How much memory a conversion takes: a random deepseek_v3 folder of 4 GB in 8 shards, to our format and back, and loaded.

python experiments/convert/run.py [--gigabytes 4] [--shards 8] [--folder DIR]

Each step is a process of its own, and its figure the peak resident memory that the system counted for it (VmHWM). What comes back
must be the numbers that were given. The bound is the one promised: the largest shard and 1 GiB. Loading holds the whole model.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import zlib
from pathlib import Path

import numpy as np
import torch

from experiments.lib.machine import describe
from fourfold.config import AttentionConfig, ExpertsConfig, ModelConfig
from fourfold.formats import adapter_of
from fourfold.formats.published import published_config
from fourfold.formats.shards import stored_tensors
from fourfold.formats.writing import Spec, divide, index_of, write_rest, write_shard
from fourfold.planner.count import skeleton

GIB = 1 << 30
PEAK = "; print('peak', next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
CONVERT = "import sys; from fourfold.cli.main import main; assert main(['convert', *sys.argv[1:]]) == 0" + PEAK
LOAD = "import sys, fourfold; model = fourfold.load(sys.argv[1])" + PEAK


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where the checkpoints are made (by default a temporary folder)")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "result.json")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = {"machine": describe()} | measure(Path(folder), options.gigabytes, options.shards)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def measure(folder: Path, gigabytes: float, shards: int) -> dict:
    theirs, ours, back = folder / "theirs", folder / "ours", folder / "back"
    config = sized(gigabytes)
    make(theirs, config, shards)
    files = [file.stat().st_size for file in theirs.glob("*.safetensors")]
    small = folder / "small"
    make(small, sized(0.001), 1)
    size = f"{max(files)}"
    result = {
        "bytes": sum(files),
        "shards": len(files),
        "largest_shard": max(files),
        "bound": max(files) + GIB,
        "bare": run(CONVERT, small, folder / "small-ours"),
        "to_fourfold": run(CONVERT, theirs, ours, "--shard-size", size),
        "to_hf": run(CONVERT, ours, back, "--to", "hf", "--shard-size", size),
        "load": run(LOAD, theirs),
    }
    result["same_numbers"] = same(theirs, back)
    result["within_bound"] = all(result[step]["peak_rss"] < result["bound"] for step in ("to_fourfold", "to_hf"))
    return result


def sized(gigabytes: float) -> ModelConfig:
    """V3's parts at about this size in bf16, nearly all of it routed experts, as in V3."""
    experts = 32 if gigabytes > 0.1 else 8
    hidden, width, vocabulary = (2048, 1024, 32000) if gigabytes > 0.1 else (64, 32, 500)
    layer = 3 * experts * hidden * width
    layers = max(round((gigabytes * 1e9 / 2 - 2 * vocabulary * hidden) / layer), 2)  # one of them is for multi-token prediction
    return ModelConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        intermediate_size=2 * hidden,
        max_position_embeddings=4096,
        num_nextn_predict_layers=1,
        attention=AttentionConfig(
            num_attention_heads=8,
            q_lora_rank=256,
            kv_lora_rank=128,
            qk_nope_head_dim=64,
            qk_rope_head_dim=32,
            v_head_dim=64,
        ),
        experts=ExpertsConfig(
            n_routed_experts=experts,
            n_shared_experts=1,
            num_experts_per_tok=4,
            moe_intermediate_size=width,
            first_k_dense_replace=1,
            n_group=4,
            topk_group=2,
        ),
    )


def make(folder: Path, config: ModelConfig, shards: int) -> None:
    """A folder of random weights, written without a model."""
    adapter, tensors = adapter_of("deepseek_v3"), skeleton(config).state_dict()
    places, specs = adapter.places(config), {}
    for name, place in places.items():
        dtype = torch.float32 if name.endswith("bias") else torch.bfloat16
        specs[name] = Spec(dtype, tuple(place.theirs(tensors[place.name][place.part]).shape))

    def draw(name: str) -> list[torch.Tensor]:
        """The same for the same place, so that copies are copies."""
        seed = zlib.crc32(f"{places[name].name} {places[name].part}".encode())
        generator = np.random.Generator(np.random.PCG64(seed))
        return [torch.from_numpy(generator.standard_normal(specs[name].shape, dtype=np.float32)) * 0.02]

    total, files = sum(spec.bytes for spec in specs.values()), {}
    limit = total // shards
    while len(files := divide(specs, limit)) > shards:
        limit = limit * 101 // 100
    folder.mkdir()
    for file, names in files.items():
        write_shard(folder / file, {name: specs[name] for name in names}, draw)
    write_rest(folder, published_config(adapter, config, torch.bfloat16), index_of(files, specs), "random weights\n", None)


def run(code: str, *arguments: object) -> dict:
    """The seconds of a Python process, and the most memory that it had resident, in bytes; it must succeed."""
    began, command = time.monotonic(), [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, text=True, check=True)
    return {"seconds": round(time.monotonic() - began, 1), "peak_rss": int(done.stdout.split()[-1]) * 1024}


def same(one: Path, other: Path) -> bool:
    """Whether two folders hold the same numbers, read one tensor at a time (routers come back in fp32)."""
    mine, theirs = stored_tensors(one), stored_tensors(other)
    return mine.keys() == theirs.keys() and all(
        torch.equal(mine[name].read().float(), theirs[name].read().float()) for name in mine
    )


if __name__ == "__main__":
    main()
