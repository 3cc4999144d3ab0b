"""Our checkpoints: what is saved is what is loaded, to the bit, and everything else is refused in one line."""

import errno
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch as st
import torch
from torch import Tensor

import fourfold
from fourfold.errors import CheckpointError, ConfigError, FourfoldError
from fourfold.formats import locate, names, ours, writing
from fourfold.media.codec import Codec, CodecConfig
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from fourfold.weights.stores import MappedStore
from tests.compare import assert_close

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def tokens(tiny: Transformer) -> Tensor:
    return torch.randint(0, tiny.config.vocab_size, (2, 40))


def same_bits(one: Transformer, other: Transformer) -> bool:
    mine, theirs = one.state_dict(), other.state_dict()
    return mine.keys() == theirs.keys() and all(
        mine[name].dtype == theirs[name].dtype and torch.equal(mine[name], theirs[name]) for name in mine
    )


def respell(folder: Path, change: Change) -> None:
    tensors = st.load_file(folder / ours.WHOLE)
    change(tensors)
    st.save_file(tensors, folder / ours.WHOLE)


def one_line(refused: pytest.ExceptionInfo[FourfoldError]) -> str:
    assert "\n" not in str(refused.value)
    return str(refused.value)


@torch.no_grad()
def test_round_trip_keeps_every_bit(tiny: Transformer, checkpoint: Path, tokens: Tensor) -> None:
    loaded = fourfold.load(checkpoint)
    assert same_bits(loaded, tiny) and not loaded.training and loaded.config == tiny.config
    assert not any(t.is_meta for t in [*loaded.parameters(), *loaded.buffers()])
    assert all(p.requires_grad for p in loaded.parameters())
    assert torch.equal(loaded(tokens).logits, tiny(tokens).logits)


def test_folder_is_one_that_the_ecosystem_opens(checkpoint: Path, tiny: Transformer, tokenizer: Tokenizer) -> None:
    names = {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md"}
    assert {path.name for path in checkpoint.iterdir()} == names
    config = json.loads((checkpoint / "config.json").read_text())
    assert config["model_type"] == "fourfold" and config["dtype"] == "float32" and "kv_lora_rank" in config
    assert (checkpoint / "README.md").read_text().startswith("---\nlicense: apache-2.0\n")
    assert len({path.stat().st_mode for path in checkpoint.iterdir()}) == 1
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(checkpoint)
    messages = [{"role": "user", "content": "the cat"}]
    assert theirs.encode("the cat sat 🙂", add_special_tokens=False) == tokenizer.encode("the cat sat 🙂")
    assert theirs.apply_chat_template(messages, tokenize=False).startswith("<|bos|><|user|>the cat<|end|>")
    assert theirs.eos_token_id == tiny.config.eos_token_id


def test_loaded_tokenizer_comes_with_the_model(checkpoint: Path, tokenizer: Tokenizer) -> None:
    assert fourfold.load("tiny").tokenizer.checksum == tokenizer.checksum
    assert fourfold.load_tokenizer("tiny").checksum == tokenizer.checksum


@pytest.mark.parametrize("shard_bytes", [1, 20_000, 200_000])
def test_sharded_is_whole(tiny: Transformer, tmp_path: Path, shard_bytes: int) -> None:
    folder = ours.save(tiny, tmp_path / "sharded", shard_bytes=shard_bytes)
    index = json.loads((folder / ours.INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in tiny.state_dict().values())
    assert set(index["weight_map"].values()) == {path.name for path in folder.glob("*.safetensors")}
    assert same_bits(ours.load(folder), tiny)


@torch.no_grad()
def test_dtype_casts_all_but_what_stays_in_fp32(tiny: Transformer, checkpoint: Path, tmp_path: Path, tokens: Tensor) -> None:
    half = ours.load(checkpoint, dtype="bfloat16")
    stored = ours.load(ours.save(tiny, tmp_path / "half", dtype=torch.bfloat16))
    assert same_bits(half, stored)
    for name, tensor in half.state_dict().items():
        original = tiny.state_dict()[name]
        kept = not original.is_floating_point() or tiny.keep_fp32(name)
        assert tensor.dtype == (original.dtype if kept else torch.bfloat16), name
    assert json.loads((tmp_path / "half" / "config.json").read_text())["dtype"] == "bfloat16"
    # the bound of bf16 is for one operation; through all layers errors add up and a router may choose otherwise
    off = (half(tokens).logits - tiny(tokens).logits).abs().median()
    assert off < 0.1 * tiny(tokens).logits.abs().max()
    with pytest.raises(ConfigError, match="dtype: int3 is not"):
        ours.load(checkpoint, dtype="int3")


@torch.no_grad()
@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_mapped_tables_give_the_same_bits(checkpoint: Path, tokens: Tensor, dtype: str | None, tmp_path: Path) -> None:
    resident, mapped = ours.load(checkpoint, dtype), ours.load(checkpoint, dtype, mapped=True)
    assert any(isinstance(module, MappedStore) for module in mapped.modules())
    assert sum(p.numel() for p in mapped.parameters()) < sum(p.numel() for p in resident.parameters())
    assert torch.equal(mapped(tokens).logits, resident(tokens).logits)
    with pytest.raises(CheckpointError, match="mapped"):
        ours.save(mapped, tmp_path / "never")


SPOILED: list[tuple[str, Callable[[Path], object], str]] = [
    ("no config", lambda f: (f / "config.json").unlink(), r"config\.json: missing"),
    ("bad JSON", lambda f: (f / "config.json").write_text("{"), r"config\.json: not valid JSON"),
    ("not UTF-8", lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), r"config\.json: not valid JSON"),
    ("not an object", lambda f: (f / "config.json").write_text("[1]"), r"config\.json: must hold one JSON object, not a list"),
    ("no model_type", lambda f: (f / "config.json").write_text("{}"), r"model_type is None.*known ones are: .*fourfold"),
    ("no weights", lambda f: (f / ours.WHOLE).unlink(), r"model\.safetensors: missing"),
    ("empty weights", lambda f: (f / ours.WHOLE).write_bytes(b""), r"model\.safetensors: truncated"),
    ("cut header", lambda f: (f / ours.WHOLE).write_bytes((f / ours.WHOLE).read_bytes()[:500]), r"model\.safetensors: truncated"),
    ("cut data", lambda f: (f / ours.WHOLE).write_bytes((f / ours.WHOLE).read_bytes()[:-1]), r"model\.safetensors: truncated"),
    ("broken tokenizer", lambda f: (f / "tokenizer.json").write_text("{}"), r"tokenizer\.json: is not a tokenizer"),
]


@pytest.mark.parametrize(("spoil", "said"), [row[1:] for row in SPOILED], ids=[row[0] for row in SPOILED])
def test_spoiled_files_are_named(copy: Path, spoil: Callable[[Path], object], said: str) -> None:
    spoil(copy)
    with pytest.raises(FourfoldError, match=said) as refused:
        fourfold.load(copy)
    assert str(copy) in one_line(refused)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda t: t.pop("norm.weight"), r"tensor norm\.weight \[32\] is missing;"),
        (lambda t: [t.pop(n) for n in list(t) if "attention" in n], r"is missing \(and \d+ more\);"),
        (lambda t: t.update(stray=torch.zeros(2, 3)), r"tensor stray \[2, 3\] is not part of"),
        (lambda t: t.update({"norm.weight": torch.zeros(31)}), r"tensor norm\.weight is \[31\] where config\.json asks for \[32\]"),
        (
            lambda t: t.update({"norm.weight": torch.zeros(32, dtype=torch.long)}),
            r"norm\.weight is stored as torch\.int64, where torch\.float32",
        ),
    ],
    ids=["missing", "several missing", "extra", "misshapen", "wrong kind"],
)
def test_tensors_must_fit(copy: Path, change: Change, said: str) -> None:
    respell(copy, change)
    with pytest.raises(CheckpointError, match=said) as refused:
        fourfold.load(copy)
    assert str(copy) in one_line(refused)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("hidden_size", 64, "where config.json asks for"),
        ("num_hidden_layers", 4, "is missing"),
        ("num_hidden_layers", 0, "num_hidden_layers"),
        ("hidden_sise", 64, "hidden_sise"),
        ("model_type", "gpt2", "model_type is 'gpt2', which cannot be read; known ones are: "),
        ("model_type", [], "model_type is []"),
        ("vocab_size", "many", "vocab_size"),
        ("hidden_size", 10**12, "impossible sizes"),
        ("v_head_dim", 2**70, "impossible sizes"),
    ],
)
def test_config_must_fit(copy: Path, field: str, value: object, said: str) -> None:
    config = json.loads((copy / "config.json").read_text()) | {field: value}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError) as refused:
        fourfold.load(copy)
    assert said in one_line(refused) and str(copy) in str(refused.value)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "model-00001-of-00003.safetensors").unlink(), "model-00001-of-00003.safetensors: missing"),
        (lambda f: (f / ours.INDEX).write_text('{"weight_map": {"a": "../x"}}'), "weight_map must give each tensor a file"),
        (lambda f: (f / ours.INDEX).write_text("{}"), "weight_map must give"),
        (lambda f: (f / ours.INDEX).unlink(), "model.safetensors: missing"),
    ],
)
def test_shards_must_be_whole(tiny: Transformer, tmp_path: Path, spoil: Callable[[Path], object], said: str) -> None:
    folder = ours.save(tiny, tmp_path / "sharded", shard_bytes=200_000)
    spoil(folder)
    with pytest.raises(CheckpointError) as refused:
        ours.load(folder)
    assert said in one_line(refused)


def test_unknown_names_list_the_known_ones(checkpoint: Path) -> None:
    with pytest.raises(CheckpointError, match=r"^nix: no such model; .*tiny.*FOURFOLD_HUB=1") as refused:
        fourfold.load("nix")
    one_line(refused)


def test_a_codec_beside_the_models_is_not_one_of_them(tiny: Transformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FOURFOLD_HOME", str(tmp_path))
    ours.save(tiny, tmp_path / "models" / "mine")
    Codec(CodecConfig(levels=(3, 3), widths=(4, 4), encoder_blocks=1, decoder_blocks=1)).save(tmp_path / "models" / "paints")
    damaged = tmp_path / "models" / "damaged"
    damaged.mkdir()
    (damaged / "config.json").write_text("{")
    assert {"mine", "damaged"} <= set(names()) and not {"paints", "codec"} & set(names())


@pytest.mark.parametrize("device", ["foo", "", "cuda:99"])
def test_a_device_that_is_not_there_is_named(checkpoint: Path, device: str) -> None:
    with pytest.raises(ConfigError, match=f"^device: {device} is not to be had here .*; leave it out, or give cpu") as refused:
        fourfold.load(checkpoint, device=device)
    one_line(refused)


def test_a_bare_name_is_a_folder_here_only_if_that_is_a_model(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    assert locate("tiny") == checkpoint
    assert locate("./tiny") == locate("tiny/") == Path("tiny")
    shutil.copy(checkpoint / "config.json", "tiny")
    assert locate("tiny") == Path("tiny")


def test_hub_is_asked_only_when_allowed(monkeypatch: pytest.MonkeyPatch, checkpoint: Path) -> None:
    asked: list[str] = []
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda name, **_: asked.append(name) or str(checkpoint))
    assert fourfold.load("some/one", allow_hub=True).tokenizer is not None
    monkeypatch.setenv("FOURFOLD_HUB", "1")
    fourfold.load("other/one")
    assert asked == ["some/one", "other/one"]


def test_hub_without_network_is_one_line() -> None:
    with pytest.raises(CheckpointError, match="no/one: not here and not to be had from the Hub") as refused:
        fourfold.load("no/one", allow_hub=True)
    one_line(refused)


def test_full_disk_leaves_the_old_checkpoint(copy: Path, tiny: Transformer, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    monkeypatch.setattr(writing, "write_shard", full)
    with pytest.raises(FourfoldError, match="no space left") as refused:
        ours.save(tiny, copy)
    one_line(refused)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir()] == [copy.name]


SAVE_UNDER_A_LIMIT = """
import resource, signal, sys
import fourfold
from fourfold.errors import FourfoldError
from fourfold.formats import ours
model = fourfold.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    ours.save(model, sys.argv[1])
except FourfoldError as error:
    print(error)
"""


def test_a_write_that_really_fails_leaves_the_old_checkpoint(copy: Path, tiny: Transformer) -> None:
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    done = subprocess.run([sys.executable, "-c", SAVE_UNDER_A_LIMIT, copy], capture_output=True, text=True, check=True)
    assert str(copy) in done.stdout and len(done.stdout.splitlines()) == 1, done.stdout
    assert same_bits(ours.load(copy), tiny) and [path.name for path in copy.parent.iterdir()] == [copy.name]


def test_saving_does_not_replace_a_folder_of_something_else(tiny: Transformer, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match="holds other files"):
        ours.save(tiny, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


@torch.no_grad()
def test_a_saved_change_replaces_the_old_weights(copy: Path, tokens: Tensor) -> None:
    model = fourfold.load(copy)
    model.norm.weight.mul_(2)
    ours.save(model, copy, model.tokenizer, card="# mine\n")
    again = fourfold.load(copy)
    assert same_bits(again, model) and (copy / "README.md").read_text() == "# mine\n"
    assert_close(again(tokens).logits, model(tokens).logits)
