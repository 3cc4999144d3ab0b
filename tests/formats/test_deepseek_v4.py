"""ours = theirs for the released V4: folders saved by transformers in both of its ways, opened by us, and our exports by it.

At least 32 index heads, so that no index scores tie; the library routes, weighs and mixes in the model's own format, which is fp32
here, as the released code does everywhere.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import fourfold
from fourfold.engine.sequence import Sequence
from fourfold.errors import ConfigError
from fourfold.formats import adapter_of, export
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from fourfold.presets import preset
from fourfold.weights.number_formats import decode_fp4, decode_fp8
from tests.builders import build
from tests.compare import assert_same_greedy, assert_same_selection, assert_same_tokens
from tests.formats.encoding import fp4, fp8
from tests.formats.folders import GAIN, PLAIN, VOCABULARY, assert_same_logits, open_folder, random_tokens, transformers
from tests.model.compressing import ROUTER, released, small

PROMPT, NEW = 40, 64
WINDOW, CSA, HCA = "sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"


def yarn(factor: float, original: int) -> dict[str, Any]:
    return {"type": "yarn", "factor": factor, "original_max_position_embeddings": original, "beta_fast": 8, "beta_slow": 1}


def heads(count: int, width: int, turned: int, rank: int, groups: int, group_rank: int, window: int) -> dict[str, int]:
    sizes = {"num_attention_heads": count, "head_dim": width, "qk_rope_head_dim": turned, "q_lora_rank": rank}
    return sizes | {"o_groups": groups, "o_lora_rank": group_rank, "sliding_window": window}


def experts(routed: int, chosen: int, width: int, hashed: int, limit: float, scale: float) -> dict[str, Any]:
    sizes = {"n_routed_experts": routed, "num_experts_per_tok": chosen, "moe_intermediate_size": width}
    return sizes | {"num_hash_layers": hashed, "swiglu_limit": limit, "routed_scaling_factor": scale}


def index(count: int, width: int, topk: int) -> dict[str, int]:
    return {"index_n_heads": count, "index_head_dim": width, "index_topk": topk}


MODELS = {
    "Flash: window, CSA and HCA of the released ratios": {"hidden_size": 40, "num_hidden_layers": 4, "hc_mult": 4}
    | heads(6, 20, 8, 14, groups=3, group_rank=5, window=23)
    | experts(7, 3, 11, hashed=1, limit=0.8, scale=1.5)
    | index(33, 12, 9)
    | {"compress_ratios": [0, 4, 128, 4], "rope_scaling": yarn(8.0, 64), "compress_rope_theta": 40000.0},
    "Pro: HCA first, odd heads, a group for each, no YaRN": {"hidden_size": 54, "num_hidden_layers": 5, "hc_mult": 2}
    | heads(5, 18, 6, 17, groups=5, group_rank=3, window=9)
    | experts(10, 4, 9, hashed=2, limit=10.0, scale=2.5)
    | index(35, 10, 20)
    | {"layer_types": [HCA, HCA, CSA, HCA, CSA], "compress_rates": {CSA: 3, HCA: 7}, "rms_norm_eps": 1e-5},
    "the window alone, every channel turned, tied": {"hidden_size": 48, "num_hidden_layers": 3, "hc_mult": 3}
    | heads(7, 16, 16, 21, groups=1, group_rank=13, window=31)
    | experts(6, 1, 14, hashed=0, limit=0.5, scale=1.0)
    | {"layer_types": [WINDOW] * 3, "rope_theta": 5000.0, "tie_word_embeddings": True, "rope_scaling": yarn(4.0, 32)},
    "every kind, other streams": {"hidden_size": 36, "num_hidden_layers": 4, "hc_mult": 4}
    | heads(9, 24, 12, 10, groups=9, group_rank=4, window=2)  # with a window of 1 the library's cache keeps everything
    | experts(8, 2, 13, hashed=2, limit=0.3, scale=0.7)
    | index(40, 14, 30)
    | {"layer_types": [CSA, WINDOW, HCA, CSA], "compress_rates": {CSA: 5, HCA: 31}, "rope_scaling": yarn(16.0, 48)}
    | {"hc_sinkhorn_iters": 7, "hc_eps": 1e-4},
}


@dataclass
class Case:
    """One random model as transformers has it, as the folder that it saved, and as we load that."""

    folder: Path
    theirs: torch.nn.Module
    ours: Transformer


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    folder = tmp_path_factory.mktemp("v4")
    theirs = their_model(MODELS[request.param])
    theirs.save_pretrained(folder)
    yield Case(folder, theirs, fourfold.load(folder))


def their_model(sizes: dict[str, Any]) -> torch.nn.Module:
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 512, "bos_token_id": None, "eos_token_id": None}
    config = transformers.DeepseekV4Config(**common | sizes)
    return spread(transformers.AutoModelForCausalLM.from_config(config, **PLAIN).float().eval())


@torch.no_grad()
def spread(model: torch.nn.Module) -> torch.nn.Module:
    """Real spread everywhere, biases of places in a block and sinks too; every token its own experts in hash-routed layers."""
    generator = torch.Generator().manual_seed(3)
    for name, tensor in model.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if name.endswith("tid2eid"):
            count = model.config.n_routed_experts
            tensor.copy_(torch.rand(len(tensor), count, generator=generator).argsort(-1)[:, : tensor.shape[1]])
        elif tensor.dim() > 1:
            tensor.copy_(noise * (1.0 if "embed" in name or "position_bias" in name else GAIN * tensor.shape[-1] ** -0.5))
        else:
            tensor.copy_(1 + 0.3 * noise if "norm" in name else 0.5 * noise)
    return model


@torch.no_grad()
def test_logits(case: Case) -> None:
    assert_same_logits(case.ours, case.theirs, random_tokens())


@torch.no_grad()
def test_greedy_generation(case: Case) -> None:
    prompt = random_tokens(PROMPT, seed=2)[0].tolist()
    expected, logits = their_greedy(case.theirs, prompt)
    assert len(set(expected)) > 5  # it does not repeat itself
    assert_same_tokens(our_greedy(case.ours, prompt), expected, logits)


def our_greedy(model: Transformer, prompt: list[int]) -> list[int]:
    sequence, tokens = Sequence(model), list(prompt)
    for _ in range(NEW):
        tokens.append(int(sequence.feed(tokens[len(sequence) :]).argmax()))
    return tokens[PROMPT:]


def their_greedy(model: torch.nn.Module, prompt: list[int]) -> tuple[list[int], torch.Tensor]:
    """The tokens, and the logits [NEW, V] that they came from."""
    chunk, cache, rows = torch.tensor([prompt]), None, []
    for _ in range(NEW):
        out = model(chunk, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        rows.append(out.logits[0, -1])
        chunk = rows[-1].argmax().view(1, 1)
    return [int(row.argmax()) for row in rows], torch.stack(rows)


@torch.no_grad()
def test_export(case: Case, tmp_path: Path) -> None:
    """Under the released names: transformers gets the same logits, and we the same bits."""
    export(case.ours, tmp_path / "copy", "deepseek_v4")
    with safe_open(tmp_path / "copy" / "model.safetensors", "pt") as file:
        assert {"embed.weight", "layers.0.attn.kv_norm.weight", "layers.1.ffn.experts.0.w3.weight"} <= set(file.keys())
    tokens = random_tokens(150, seed=4)
    assert_same_greedy(open_folder(tmp_path / "copy")(tokens).logits, case.theirs(tokens).logits)
    again = fourfold.load(tmp_path / "copy")
    assert again.config == case.ours.config
    assert torch.equal(again(tokens).logits, case.ours(tokens).logits)


@torch.no_grad()
def test_their_own_names(case: Case, tmp_path: Path) -> None:
    """What transformers saves when asked for its own names holds the same tensors."""
    case.theirs.save_pretrained(tmp_path / "own", save_original_format=False)
    again, expected = fourfold.load(tmp_path / "own").state_dict(), case.ours.state_dict()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in expected.items())


@torch.no_grad()
def test_choices(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same blocks and the same experts in every layer."""
    module, blocks, routed = transformers.models.deepseek_v4.modeling_deepseek_v4, [], []
    for name, seen, take in [
        ("DeepseekV4Indexer", blocks, lambda out: out),
        ("DeepseekV4TopKRouter", routed, lambda out: out[2]),
        ("DeepseekV4HashRouter", routed, lambda out: out[2]),
    ]:
        monkeypatch.setattr(getattr(module, name), "forward", spy(getattr(module, name).forward, seen, take))
    tokens, trace = random_tokens(), Trace()
    case.theirs(tokens)
    case.ours(tokens, trace=trace)
    for layer, theirs in zip(trace.layers, routed, strict=True):
        assert_same_selection(layer.expert_ids, theirs)
    choosing = [layer for layer in trace.layers if layer.index_mask is not None]
    for layer, theirs in zip(choosing, blocks, strict=True):
        chosen = torch.zeros(*layer.index_mask.shape[:2], layer.index_mask.shape[2] + 1, dtype=torch.bool)
        chosen.scatter_(-1, theirs.where(theirs >= 0, layer.index_mask.shape[2]), True)
        assert_same_selection(layer.index_mask, chosen[..., :-1])


def spy(forward: Any, seen: list, take: Any) -> Any:
    def watched(*args: Any, **kwargs: Any) -> Any:
        out = forward(*args, **kwargs)
        seen.append(take(out))
        return out

    return watched


@torch.no_grad()
def test_multi_token_prediction_comes_along(tmp_path: Path) -> None:
    """transformers has none of it: our export against ourselves, and what is left when the tensors are dropped."""
    model = build(small())
    folder = export(model, tmp_path / "whole", "deepseek_v4")
    again = fourfold.load(folder)
    assert again.config.but(intermediate_size=model.config.intermediate_size) == model.config
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    tensors = load_file(folder / "model.safetensors")
    d = model.config.hidden_size
    assert torch.equal(torch.cat([tensors[f"mtp.0.{n}_proj.weight"] for n in "eh"], dim=1), model.mtp[0].eh_proj.weight)
    assert tensors["mtp.0.e_proj.weight"].shape == (d, d)
    save_file({name: t for name, t in tensors.items() if not name.startswith("mtp.")}, folder / "model.safetensors")
    trunk = fourfold.load(folder)
    assert trunk.config.num_nextn_predict_layers == 0
    assert torch.equal(trunk(random_tokens(50) % 61).logits, model(random_tokens(50) % 61).logits)


@torch.no_grad()
def test_drafting_stages_are_left_unread(tmp_path: Path) -> None:
    """The builds of July and August 2026: three stages of DSpark, whatever they hold, in the place of multi-token prediction."""
    model = build(small())
    folder = export(model, tmp_path / "build", "deepseek_v4")
    path, tensors = folder / "config.json", load_file(folder / "model.safetensors")
    published = json.loads(path.read_text())
    ratios = [*published["compress_ratios"], 0, 0]
    path.write_text(json.dumps(published | {"dspark_block_size": 5, "num_nextn_predict_layers": 3, "compress_ratios": ratios}))
    extra = {"mtp.0.main_proj.weight": torch.ones(2, 6), "mtp.2.markov_head.markov_w1": torch.ones(3)}
    save_file(tensors | extra, folder / "model.safetensors")
    trunk = fourfold.load(folder)
    assert trunk.config.num_nextn_predict_layers == 0
    assert torch.equal(trunk(random_tokens(50) % 61).logits, model(random_tokens(50) % 61).logits)


@torch.no_grad()
def test_released_number_formats(tmp_path: Path) -> None:
    """fp8 with e8m0 scales and fp4 experts, as released, load to the logits of their decoded twin."""
    config = released().but(hidden_size=64, memory=None, streams=small().streams, attention__q_lora_rank=40)
    model = build(config.but(experts=ROUTER.but(moe_intermediate_size=32)))
    folder = export(model, tmp_path / "plain", "deepseek_v4")
    tensors = load_file(folder / "model.safetensors")
    codes, decoded, matrices = {}, {}, ("wq_a", "wq_b", "wkv", "wo_a", "wo_b", "w1", "w2", "w3")
    for name, tensor in tensors.items():
        base, _, leaf = name.rpartition(".")
        if leaf == "weight" and ".experts." in name:
            codes[name], codes[f"{base}.scale"] = fp4(tensor)
            decoded[name] = decode_fp4(codes[name], codes[f"{base}.scale"], torch.float32)
        elif leaf == "weight" and base.rsplit(".", 1)[-1] in matrices and "compressor" not in name:
            codes[name], codes[f"{base}.scale"] = fp8(tensor, powers=True)
            decoded[name] = decode_fp8(codes[name], codes[f"{base}.scale"], (128, 128), torch.float32)
        else:
            codes[name] = decoded[name] = tensor
    assert sum(t.dtype == torch.int8 for t in codes.values()) == 3 * 3 * 7
    save_file(decoded, folder / "model.safetensors")
    expected = fourfold.load(folder, dtype="float32")
    save_file(codes, folder / "model.safetensors")
    published = json.loads((folder / "config.json").read_text())
    quantised = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
    (folder / "config.json").write_text(json.dumps(published | {"quantization_config": quantised, "expert_dtype": "fp4"}))
    loaded = fourfold.load(folder, dtype="float32")
    tokens = random_tokens(80) % 61
    assert torch.equal(loaded(tokens).logits, expected(tokens).logits)
    assert not torch.equal(loaded(tokens).logits, model(tokens).logits)


RELEASED = {  # the config.json of V4-Flash, but for what is said about numbers
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "hc_eps": 1e-06,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "head_dim": 512,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "index_head_dim": 128,
    "index_n_heads": 64,
    "index_topk": 512,
    "initializer_range": 0.02,
    "max_position_embeddings": 1048576,
    "model_type": "deepseek_v4",
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_attention_heads": 64,
    "num_experts_per_tok": 6,
    "num_hidden_layers": 43,
    "num_hash_layers": 3,
    "num_key_value_heads": 1,
    "num_nextn_predict_layers": 1,
    "o_groups": 8,
    "o_lora_rank": 1024,
    "q_lora_rank": 1024,
    "qk_rope_head_dim": 64,
    "rms_norm_eps": 1e-06,
    "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 16, "original_max_position_embeddings": 65536, "type": "yarn"},
    "rope_theta": 10000,
    "routed_scaling_factor": 1.5,
    "scoring_func": "sqrtsoftplus",
    "sliding_window": 128,
    "swiglu_limit": 10.0,
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
    "vocab_size": 129280,
    "compress_rope_theta": 160000,
    "compress_ratios": [0, 0, *[4, 128] * 20, 4, 0],
}


def test_the_released_config_is_the_preset() -> None:
    adapter = adapter_of("deepseek_v4")
    assert adapter.config(RELEASED) == preset("v4-flash")
    written = adapter.published(preset("v4-flash"))
    assert adapter.config(written) == preset("v4-flash")
    assert {name: RELEASED[name] for name in written.keys() & RELEASED.keys() - {"rope_scaling"}} == {
        name: written[name] for name in written.keys() & RELEASED.keys() - {"rope_scaling"}
    }
    assert RELEASED.keys() - written.keys() == {"model_type"}
    assert RELEASED["rope_scaling"].items() <= written["rope_scaling"].items()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_shared_experts": 2}, "n_shared_experts is 2"),
        ({"norm_topk_prob": False}, "norm_topk_prob is False"),
        ({"scoring_func": "softmax"}, "scoring_func is 'softmax'"),
        ({"num_key_value_heads": 8}, "num_key_value_heads is 8"),
        ({"attention_bias": True}, "attention_bias is True"),
        ({"q_lora_rank": None}, "q_lora_rank is missing"),
        ({"index_topk": None}, "index_topk is missing"),
        ({"sliding_window": 0}, "sliding_window is 0"),
        ({"compress_ratios": None}, "compress_ratios is missing"),
        ({"compress_ratios": 4}, "compress_ratios is 4; it must be a list"),
        ({"compress_ratios": None, "layer_types": "all"}, "layer_types is 'all'; it must be a list"),
        ({"compress_ratios": None, "layer_types": [[CSA]] * 43}, "layer_types holds ['compressed_sparse_attention']"),
        ({"compress_rates": [4, 128]}, "compress_rates is [4, 128]; it must be an object"),
        ({"num_nextn_predict_layers": "one"}, "num_nextn_predict_layers is 'one'; it must be a whole number"),
        ({"moe_intermediate_size": None}, "moe_intermediate_size is missing"),
        ({"qk_rope_head_dim": None, "partial_rotary_factor": "half"}, "partial_rotary_factor is 'half'; it must be a number"),
        ({"rope_scaling": "yarn"}, "rope_scaling is 'yarn'; it must be an object"),
        ({"rope_parameters": [10000]}, "rope_parameters is [10000]; it must be an object"),
        ({"mlp_layer_types": 3}, "mlp_layer_types is 3; it must be a list"),
        ({"compress_ratios": [0, 4]}, "compress_ratios has 2 numbers; give one for each of 44 layers"),
        ({"compress_ratios": None, "layer_types": ["full_attention"] * 43}, "layer_types holds 'full_attention'"),
        ({"mlp_layer_types": ["moe", "hash_moe"]}, "mlp_layer_types"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0}}, "rope_scaling.type is 'llama3'"),
        ({"rope_scaling": {"type": "yarn"}}, "factor is missing"),
        ({"o_groups": 7}, "o_groups is 7, which must divide num_attention_heads (64)"),
    ],
)
def test_what_cannot_be_honoured_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        adapter_of("deepseek_v4").config(RELEASED | changes)
    assert str(caught.value).startswith(said) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"memory": released().memory}, "memory: deepseek_v4 has no words"),
        ({"streams": None}, "streams: deepseek_v4 cannot do without"),
        ({"streams__hc_mtp": False}, "hc_mtp is False"),
        ({"experts__n_shared_experts": 2}, "n_shared_experts is 2"),
        ({"experts__first_k_dense_replace": 1}, "first_k_dense_replace is 1"),
        ({"compression__compress_ratios": (7, 3, 5, 0)}, "2 lengths for blocks that are read whole (5, 7)"),
        ({"attention.rope_scaling.mscale": 0.7}, "rope_scaling"),
    ],
)
def test_what_has_no_words_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        adapter_of("deepseek_v4").published(small().but(**changes))
    assert said in str(caught.value) and "\n" not in str(caught.value)
