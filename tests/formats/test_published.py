"""Reading and writing by an adapter's table: whole, strict, quantised or not, one tensor at a time."""

import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch as st
import torch

import fourfold
from fourfold.config import ModelConfig
from fourfold.errors import CheckpointError, ConfigError, FourfoldError
from fourfold.formats import adapter_for, adapter_of, export, open_config, writing
from fourfold.formats.shards import INDEX, WHOLE, Stored, stored_tensors
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests.builders import build, everything, random_tokens
from tests.compare import assert_same_greedy
from tests.formats.encoding import fp4
from tests.formats.small import CONFIGS, Change, Held, model, quantised_twins, reconfigure, respell, same_bits, v3_in_blocks

Spoil = Callable[[Path], object]


@pytest.fixture(scope="module")
def original() -> Transformer:
    return model("deepseek_v3")


@pytest.fixture
def folder(original: Transformer, tmp_path: Path) -> Path:
    """A V3 folder to spoil."""
    return export(original, tmp_path / "theirs")


@pytest.mark.parametrize("kind", CONFIGS)
def test_export_and_back_keeps_every_bit(kind: str, tmp_path: Path) -> None:
    ours = model(kind)
    folder = export(ours, tmp_path / "theirs", shard_bytes=20_000)
    about = json.loads((folder / "config.json").read_text())
    assert about["model_type"] == kind and about["architectures"] == [adapter_of(kind).architecture]
    assert (folder / INDEX).is_file() and about["dtype"] == "float32"
    back = fourfold.load(folder)
    assert same_bits(back, ours) and not back.training
    assert not any(t.is_meta for t in [*back.parameters(), *back.buffers()])
    assert open_config(folder) == ours.config


@pytest.mark.parametrize("kind", CONFIGS)
def test_places_fill_each_tensor_once(kind: str) -> None:
    config = CONFIGS[kind]()
    filled = {name: torch.zeros(tensor.shape) for name, tensor in Transformer(config).state_dict().items()}
    for place in adapter_of(kind).places(config).values():
        if not place.copy:
            filled[place.name][place.part] += 1
    assert all((count == 1).all() for count in filled.values())


@pytest.mark.parametrize("kind", CONFIGS)
def test_what_the_reader_does_to_a_tensor_the_writer_undoes(kind: str) -> None:
    ours = model(kind)
    tensors = ours.state_dict()
    for name, place in adapter_of(kind).places(ours.config).items():
        part = tensors[place.name][place.part]
        assert torch.equal(place.ours(place.theirs(part)), part), name


def test_a_tokenizer_comes_along(original: Transformer, tmp_path: Path, tokenizer: Tokenizer) -> None:
    folder = export(original, tmp_path / "theirs", tokenizer=tokenizer)
    assert fourfold.load(folder).tokenizer.checksum == tokenizer.checksum


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_export_in_another_format(original: Transformer, tmp_path: Path, dtype: str) -> None:
    folder = export(original, tmp_path / "theirs", dtype=dtype)
    wanted = getattr(torch, dtype)
    assert json.loads((folder / "config.json").read_text())["dtype"] == dtype
    assert stored_tensors(folder)["model.embed_tokens.weight"].dtype == wanted
    for name, tensor in fourfold.load(folder).state_dict().items():
        kept = original.keep_fp32(name)
        assert torch.equal(tensor, original.state_dict()[name].to(torch.float32 if kept else wanted)), name


def test_numbers_of_several_formats_become_one(folder: Path) -> None:
    """Published files mix them; products of the model need one. The embedding's decides, unless it is said."""

    def mix(tensors: dict[str, torch.Tensor]) -> None:
        for i, (name, tensor) in enumerate(tensors.items()):
            tensors[name] = tensor.to([torch.float32, torch.bfloat16, torch.float16][i % 3])
        tensors["model.embed_tokens.weight"] = tensors["model.embed_tokens.weight"].bfloat16()

    respell(folder, mix)
    for dtype, wanted in ((None, torch.bfloat16), ("float32", torch.float32)):
        loaded = fourfold.load(folder, dtype=dtype)
        for name, tensor in loaded.state_dict().items():
            assert tensor.dtype == (torch.float32 if loaded.keep_fp32(name) else wanted), name


@torch.no_grad()
@pytest.mark.parametrize(("block", "powers", "scale"), [((128, 128), False, "weight_scale_inv"), ((32, 48), True, "scale")])
def test_fp8_is_its_bf16_twin(tmp_path: Path, block: tuple[int, int], powers: bool, scale: str) -> None:
    export(build(v3_in_blocks()), tmp_path / "plain")
    quantised_twins(tmp_path / "plain", tmp_path / "coded", tmp_path / "twin", block, powers, scale)
    coded, twin = fourfold.load(tmp_path / "coded"), fourfold.load(tmp_path / "twin")
    assert same_bits(coded, twin) and coded.embed.weight.dtype == torch.bfloat16
    wide = fourfold.load(tmp_path / "coded", dtype="float32").state_dict()
    for name, tensor in coded.state_dict().items():
        assert torch.equal(wide[name].to(tensor.dtype), tensor), f"{name}: rounded more than once"
    tokens, plain = random_tokens(2, 50), fourfold.load(tmp_path / "plain")
    assert_same_greedy(coded.float()(tokens).logits, twin.float()(tokens).logits)
    off = (twin(tokens).logits - plain(tokens).logits).abs().median()
    assert 0 < off < 0.2 * plain(tokens).logits.std()


def test_fp4_experts_are_their_bf16_twin(tmp_path: Path) -> None:
    """As in V4: two codes a byte, twice as many inputs as stored columns."""
    config = v3_in_blocks().but(hidden_size=160)
    export(build(config.but(experts=config.experts.but(moe_intermediate_size=96))), tmp_path / "theirs", dtype="bfloat16")
    twin, values = tmp_path / "twin", torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    shutil.copytree(tmp_path / "theirs", twin)
    coded, decoded = {}, {}

    def encode(tensors: dict[str, torch.Tensor]) -> None:
        for name in [name for name in tensors if ".experts." in name]:
            coded[name], coded[name.removesuffix("weight") + "scale"] = fp4(tensors[name])
            nibbles = torch.stack([coded[name] & 15, coded[name] >> 4 & 15], dim=-1).flatten(1)
            numbers = values[nibbles.int() & 7] * (1 - 2 * (nibbles.int() >> 3))
            scale = 2.0 ** (coded[name.removesuffix("weight") + "scale"].view(torch.uint8).double() - 127)
            decoded[name] = (numbers * scale.repeat_interleave(32, 1)).bfloat16()
        tensors.update(coded)

    respell(tmp_path / "theirs", encode)
    respell(twin, lambda tensors: tensors.update(decoded))
    assert len(decoded) == 3 * 8 * 3
    assert same_bits(fourfold.load(tmp_path / "theirs"), fourfold.load(twin))


def test_one_tensor_is_held_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Held()
    monkeypatch.setattr(Stored, "read", held.watch(Stored.read))
    loaded = fourfold.load(folder)
    assert held.count > 100 and held.largest < max(tensor.numel() for tensor in loaded.state_dict().values())


def rename(old: str, new: str) -> Change:
    return lambda tensors: tensors.update({new: tensors.pop(old)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("model.norm.weight"), r"tensor model\.norm\.weight \[22\] is missing; copy the checkpoint again"),
        (
            lambda t: [t.pop(n) for n in list(t) if "experts.3" in n],
            r"layers\.1\.mlp\.experts\.3\.gate_proj\.weight .*\(and 8 more\)",
        ),
        (
            lambda t: t.update(stray=torch.zeros(2, 3)),
            r"model\.safetensors: tensor stray \[2, 3\] is not part of the model of config",
        ),
        (rename("model.norm.weight", "norm.weight"), r"tensor model\.norm\.weight \[22\] is missing"),
        (
            lambda t: t.update({"model.layers.1.mlp.experts.0.up_proj.weight": torch.zeros(22, 10)}),
            r"tensor model\.layers\.1\.mlp\.experts\.0\.up_proj\.weight is \[22, 10\] where config\.json asks for \[10,",
        ),
        (
            lambda t: t.update({"model.norm.weight": torch.zeros(22, dtype=torch.int32)}),
            r"tensor model\.norm\.weight is stored as torch\.int32, where torch\.float32 is needed",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn)}),
            r"lm_head\.weight is fp8, and its scale lm_head\.weight_scale_inv or lm_head\.scale is missing",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.float8_e5m2)}),
            r"lm_head\.weight is stored as torch\.float8_e5m2",
        ),
        (
            lambda t: t.update({"lm_head.weight_scale_inv": torch.ones(1, 1)}),
            r"tensor lm_head\.weight_scale_inv \[1, 1\] is not part",
        ),
        (
            lambda t: t.update({"lm_head.weight": t["lm_head.weight"].to(torch.float8_e4m3fn), "lm_head.scale": torch.ones(2, 1)}),
            r"lm_head\.scale is \[2, 1\] of torch\.float32, where lm_head\.weight \[61, 22\] asks for \[1, 1\]; check",
        ),
    ],
)
def test_tensors_must_fit(folder: Path, change: Change, said: str) -> None:
    respell(folder, change)
    with pytest.raises(CheckpointError, match=said) as refused:
        fourfold.load(folder)
    assert "\n" not in str(refused.value) and str(folder) in str(refused.value)


def test_second_copies_and_rotary_tables_may_be_there_or_not(folder: Path, original: Transformer) -> None:
    copies = ["model.layers.3.embed_tokens.weight", "model.layers.3.shared_head.head.weight"]
    assert set(copies) < set(st.load_file(folder / WHOLE))
    respell(folder, lambda tensors: [tensors.pop(name) for name in copies])
    respell(folder, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)}))
    assert same_bits(fourfold.load(folder), original)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"model_type": "gpt2"},
            "model_type is 'gpt2', which cannot be read; known ones are: fourfold, llama, deepseek_v2, deepseek_v3",
        ),
        ({"hidden_size": None}, "hidden_size"),
        ({"vocab_size": 62}, "lm_head.weight is [61, 22] where config.json asks for [62, 22] (and 3 more)"),
        ({"num_hidden_layers": 5}, "is missing"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantization_config.quant_method is 'gptq', which cannot be read"),
        (
            {"quantization_config": {"weight_block_size": [128]}},
            "quantization_config.weight_block_size is [128]; it must be two sizes",
        ),
    ],
)
def test_config_must_fit(folder: Path, fields: dict[str, object], said: str) -> None:
    reconfigure(folder, **fields)
    with pytest.raises(CheckpointError) as refused:
        fourfold.load(folder)
    assert said in str(refused.value) and "\n" not in str(refused.value) and str(folder) in str(refused.value)


def test_a_model_that_no_format_has_words_for() -> None:
    config: ModelConfig = everything()
    with pytest.raises(ConfigError, match="no published format has words for this model .*llama: .*deepseek_v3: ") as refused:
        adapter_for(config)
    assert "\n" not in str(refused.value)
    with pytest.raises(ConfigError, match="model_type: 'gpt2' is not a published format known here; choose one of llama, deepseek"):
        adapter_of("gpt2")


def test_the_first_format_with_words_is_taken() -> None:
    for kind, config in CONFIGS.items():
        assert adapter_for(config()).model_type == kind


def test_a_failed_export_leaves_what_was_there(folder: Path, original: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(writing, "write_shard", full)
    with pytest.raises(FourfoldError, match="no space left"):
        export(original, folder)
    with pytest.raises(FourfoldError, match="no space left"):
        export(original, folder.parent / "other")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    (folder.parent / "thesis").mkdir()
    (folder.parent / "thesis" / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds other files"):
        export(original, folder.parent / "thesis")
