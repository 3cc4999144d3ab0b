"""Small models of published formats, made by ourselves, and folders of them to be spoilt or quantised."""

import json
import weakref
from collections.abc import Callable
from pathlib import Path

import safetensors.torch as st
import torch
from torch import Tensor

from fourfold.config import CompressionConfig, ModelConfig
from fourfold.formats.shards import INDEX, WHOLE
from fourfold.model.transformer import Transformer
from tests.builders import INDEXER, LATENT, V2_ROUTER, V3_ROUTER, base, build
from tests.formats.encoding import fp8
from tests.model import compressing

Change = Callable[[dict[str, Tensor]], object]


def llama() -> ModelConfig:
    return base()


def v2() -> ModelConfig:
    router = V2_ROUTER.but(bias_update_speed=0.0, aux_loss_alpha=1e-3)
    return base(attention=LATENT.but(q_lora_rank=None), experts=router)


def v3() -> ModelConfig:
    """Two dense layers' worth of everything V3 has, multi-token prediction included."""
    return base(attention=LATENT, experts=V3_ROUTER, num_nextn_predict_layers=1)


def moe_16b() -> ModelConfig:
    router = V2_ROUTER.but(topk_method="greedy", n_group=1, topk_group=1, routed_scaling_factor=1.0)
    return base(experts=router.but(bias_update_speed=0.0, aux_loss_alpha=1e-3))


def v32() -> ModelConfig:
    return v3().but(selection=INDEXER)


def v4() -> ModelConfig:
    """Each kind of layer, hash routing, streams and multi-token prediction."""
    compression = CompressionConfig(compress_ratios=(4, 128, 0, 0), sliding_window=5, o_groups=3, o_lora_rank=4)
    return compressing.small().but(compression=compression, intermediate_size=10)


def v3_in_blocks() -> ModelConfig:
    """V3 with matrices of more than one block of 128 x 128, none of them a multiple of it."""
    latent = LATENT.but(
        num_attention_heads=5, q_lora_rank=140, kv_lora_rank=36, qk_nope_head_dim=20, qk_rope_head_dim=8, v_head_dim=30
    )
    return v3().but(hidden_size=150, intermediate_size=270, attention=latent, experts=V3_ROUTER.but(moe_intermediate_size=70))


CONFIGS = {"llama": llama, "deepseek": moe_16b, "deepseek_v2": v2, "deepseek_v3": v3, "deepseek_v32": v32, "deepseek_v4": v4}


def model(kind: str) -> Transformer:
    return build(CONFIGS[kind]())


def same_bits(one: Transformer, other: Transformer) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    same = [mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine]
    return mine.keys() == theirs.keys() and all(same) and one.config == other.config


def respell(folder: Path, change: Change) -> None:
    """Change the tensors of a folder of one file."""
    tensors = st.load_file(folder / WHOLE)
    change(tensors)
    st.save_file(tensors, folder / WHOLE)


def reconfigure(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def quantised_twins(plain: Path, coded: Path, twin: Path, block: tuple[int, int], powers: bool, scale_name: str) -> None:
    """Two folders from one in fp32: `coded` as fp8 with its scales in another shard, and `twin`, the same numbers as bf16."""
    tensors = st.load_file(plain / WHOLE)
    codes, scales, numbers = {}, {}, {}
    for name, tensor in tensors.items():
        if name.endswith("_proj.weight") and "eh_proj" not in name:
            codes[name], scale = fp8(tensor, block, powers)
            scales[name.removesuffix("weight") + scale_name] = scale
            spread = scale.float().repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
            numbers[name] = (codes[name].float() * spread[: tensor.shape[0], : tensor.shape[1]]).bfloat16()
        else:
            kept = tensor if name.endswith("bias") else tensor.bfloat16()
            codes[name], numbers[name] = kept, kept
    for folder, shards in ((coded, [codes, scales]), (twin, [numbers])):
        folder.mkdir()
        (folder / "config.json").write_text((plain / "config.json").read_text())
        files = [f"model-{i}.safetensors" for i in range(len(shards))]
        for file, shard in zip(files, shards, strict=True):
            st.save_file(shard, folder / file)
        weight_map = {name: file for file, shard in zip(files, shards, strict=True) for name in shard}
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    about = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": list(block)}
    reconfigure(coded, quantization_config=about)


class Held:
    """Watches what a `read` gives: each tensor must be gone before the next. `largest` is the most elements of one."""

    def __init__(self) -> None:
        self.largest = self.count = 0

    def watch(self, read: Callable[..., Tensor]) -> Callable[..., Tensor]:
        last: list[weakref.ref[Tensor]] = []

        def watched(*arguments: object, **options: object) -> Tensor:
            assert all(ref() is None for ref in last), "a tensor that was read is still held"
            tensor = read(*arguments, **options)
            last[:] = [weakref.ref(tensor)]
            self.count += 1
            self.largest = max(self.largest, tensor.numel())
            return tensor

        return watched
