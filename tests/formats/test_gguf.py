"""GGUF files of llama-style models: written by the gguf package, read by us and by transformers; and one real model."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import Regex, models, pre_tokenizers, trainers
from torch import Tensor

import fourfold
from fourfold.cli.main import main
from fourfold.config import ModelConfig, RopeScaling
from fourfold.errors import CheckpointError
from fourfold.formats import convert_checkpoint, gguf, open_config, open_tokenizer
from fourfold.formats.llama import ADAPTER
from fourfold.model.rope import frequencies
from fourfold.model.transformer import Transformer
from tests.builders import GROUPED, base, build, random_tokens
from tests.compare import assert_close, assert_same_greedy
from tests.formats.small import same_bits

library = pytest.importorskip("gguf", reason="an optional extra: pip install 'fourfold[gguf]'")

REAL = "SmolLM2-135M-Instruct.Q4_1.gguf"
CONTROLS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = "The cat sat on the mat in 1984, and 12345 dogs didn't run off.\n\nGrüße aus Köln, 漢字 und 🙂 dazu.  " * 8


def config(**changes: Any) -> ModelConfig:
    """Rows of multiples of 32, as quantised GGUF wants them."""
    small = base(attention=GROUPED.but(num_attention_heads=4, head_dim=16), rms_norm_eps=1e-5)
    return small.but(hidden_size=64, intermediate_size=96, **changes)


def write(
    path: Path,
    model: Transformer,
    kind: str = "F32",
    tokenizer: tuple[str, tokenizers.Tokenizer] | None = None,
    spoil: Callable[[Any, dict[str, np.ndarray]], object] = lambda writer, tensors: None,
    architecture: str = "llama",
) -> Path:
    """A GGUF file as llama.cpp's converter lays it out: matrices as `kind`, norms as F32, rows of q and k as pairs."""
    sizes, attention = model.config, model.config.attention
    writer = library.GGUFWriter(path, architecture)
    writer.add_context_length(sizes.max_position_embeddings)
    writer.add_embedding_length(sizes.hidden_size)
    writer.add_block_count(sizes.num_hidden_layers)
    writer.add_feed_forward_length(sizes.intermediate_size)
    writer.add_head_count(attention.num_attention_heads)
    writer.add_head_count_kv(attention.key_value_heads)
    writer.add_layer_norm_rms_eps(sizes.rms_norm_eps)
    writer.add_rope_freq_base(attention.rope_theta)
    writer.add_rope_dimension_count(attention.head_dim)
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    if tokenizer is not None:
        add_tokenizer(writer, *tokenizer)
    tensors = {gguf_name(name): paired(name, tensor, sizes) for name, tensor in published(model).items()}
    spoil(writer, tensors)
    for name, values in tensors.items():
        numbers = library.GGMLQuantizationType[kind if values.ndim == 2 else "F32"]
        data = library.quants.quantize(values, numbers)
        writer.add_tensor(name, data, raw_dtype=numbers)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def published(model: Transformer) -> dict[str, Tensor]:
    places = ADAPTER.places(model.config)
    tensors = model.state_dict()
    return {name: place.theirs(tensors[place.name][place.part]) for name, place in places.items()}


def gguf_name(name: str) -> str:
    own = {theirs: ours for ours, theirs in (gguf.OUTER | gguf.INNER).items()}
    parts = name.removeprefix("model.layers.").split(".")
    if name.startswith("model.layers."):
        return f"blk.{parts[0]}.{own['.'.join(parts[1:-1])]}.{parts[-1]}"
    return f"{own[name.rpartition('.')[0]]}.{parts[-1]}"


def paired(name: str, tensor: Tensor, config: ModelConfig) -> np.ndarray:
    """Row j of the first half of a head next to row j of the second."""
    heads = config.attention.key_value_heads if "k_proj" in name else config.attention.num_attention_heads
    if "q_proj" in name or "k_proj" in name:
        half = config.attention.head_dim // 2
        order = [head * 2 * half + row for head in range(heads) for j in range(half) for row in (j, half + j)]
        tensor = tensor[order]
    return tensor.float().contiguous().numpy()


def trained(cut: str) -> tokenizers.Tokenizer:
    """A byte-level tokenizer that cuts text in one of the known ways, spelt out here once more."""
    llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    known = {
        "gpt-2": level,
        "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level]),
        "llama-bpe": pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(llama3), behavior="isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        ),
    }
    inner = tokenizers.Tokenizer(models.BPE(ignore_merges=cut == "llama-bpe"))
    inner.pre_tokenizer = known[cut]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    options = dict(vocab_size=400, special_tokens=CONTROLS, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator([TEXT], trainers.BpeTrainer(**options))
    return inner


def add_tokenizer(writer: Any, cut: str, inner: tokenizers.Tokenizer) -> None:
    merges = json.loads(inner.to_str())["model"]["merges"]
    tokens = [inner.id_to_token(i) for i in range(inner.get_vocab_size())]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(cut)
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.CONTROL if token in CONTROLS else 1 for token in tokens])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    writer.add_add_bos_token(False)
    writer.add_chat_template("{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}")


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": True}, {"attention.attention_bias": True}], ids=str)
def test_plain_numbers_come_back(tmp_path: Path, kind: str, changes: dict[str, Any]) -> None:
    dtype = gguf.PLAIN[kind]
    model = build(config(**changes)).to(dtype).float()
    loaded = fourfold.load(write(tmp_path / "model.gguf", model, kind))
    assert loaded.embed.weight.dtype == dtype and loaded.tokenizer is None
    wanted = {name: tensor.to(dtype) for name, tensor in model.state_dict().items()}
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in loaded.state_dict().items())
    assert loaded.config.but(rms_norm_eps=1e-5, initializer_range=0.15) == model.config


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_1"])
def test_quantised_numbers_are_the_packages(tmp_path: Path, kind: str) -> None:
    """q and k are quantised in the file's order of rows and put back in ours, so that each row keeps its own scales."""
    model = build(config())
    path = write(tmp_path / "model.gguf", model, kind)
    loaded = fourfold.load(path, dtype="float32")
    numbers = library.GGMLQuantizationType[kind]
    for name, tensor in published(loaded).items():
        original = published(model)[name]
        if original.dim() == 2:
            original = torch.tensor(library.quants.dequantize(library.quants.quantize(original.numpy(), numbers), numbers))
        assert torch.equal(tensor, original), name
    half = fourfold.load(path)
    assert half.embed.weight.dtype == torch.bfloat16 and torch.equal(half.head, loaded.head.bfloat16())


@pytest.fixture
def theirs(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], torch.nn.Module]:
    """transformers' own reader of GGUF, which orders the rows of q and k by itself. It asks for accelerate but needs it only
    for other devices."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr("transformers.modeling_utils.is_accelerate_available", lambda: True)
    kind = transformers.AutoModelForCausalLM
    return lambda path: kind.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


@torch.no_grad()
def test_transformers_reads_the_same_model(tmp_path: Path, theirs: Callable[[Path], torch.nn.Module]) -> None:
    inner = trained("gpt-2")
    model = build(config(vocab_size=inner.get_vocab_size()))
    path, tokens = write(tmp_path / "model.gguf", model, "F32", ("gpt-2", inner)), random_tokens(2, 60)
    expected = theirs(path)(tokens).logits
    assert_same_greedy(fourfold.load(path)(tokens).logits, expected)
    assert_close(model(tokens).logits, expected)


def test_angles_of_llama_3(tmp_path: Path) -> None:
    rule = RopeScaling(type="llama3", factor=8.0, original_max_position_embeddings=8192)
    attention = config().attention.but(rope_theta=500000.0, rope_scaling=rule)
    model = build(config(attention=attention))
    divisors = (frequencies(16, 500000.0, None) / frequencies(16, 500000.0, rule)).numpy()
    path = write(tmp_path / "model.gguf", model, spoil=lambda writer, tensors: tensors.update({"rope_freqs.weight": divisors}))
    assert fourfold.load(path).config.attention.rope_scaling == rule
    other = divisors**2
    path = write(tmp_path / "other.gguf", model, spoil=lambda writer, tensors: tensors.update({"rope_freqs.weight": other}))
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight is not the rule of Llama 3\.1"):
        fourfold.load(path)


@pytest.mark.parametrize("cut", list(gguf.CUTS))
def test_tokenizer_is_rebuilt(tmp_path: Path, cut: str) -> None:
    inner = trained(cut)
    path = write(tmp_path / "model.gguf", build(config(vocab_size=inner.get_vocab_size())), tokenizer=(cut, inner))
    tokenizer = open_tokenizer(path)
    assert tokenizer.vocab_size == inner.get_vocab_size()
    for text in (TEXT, "1234567 l'été\r\n\n  x", "\t\t<|im_start|>", "didn't  WE'LL"):
        ids = tokenizer.encode(text)
        if "<|" not in text:
            assert ids == inner.encode(text, add_special_tokens=False).ids
        assert tokenizer.decode(ids) == text and not tokenizer.special_ids & set(ids), "typed text became a control token"
    assert tokenizer.special("<|im_start|>") == 1 and tokenizer.ends >= {1, 2} - {1}
    assert "<|im_start|>" in tokenizer.settings.template
    assert fourfold.load(path).tokenizer.checksum == tokenizer.checksum


def test_digits_are_cut_as_the_file_says(tmp_path: Path) -> None:
    counts = {}
    for cut in gguf.CUTS:
        inner = trained(cut)
        path = write(tmp_path / f"{cut}.gguf", build(config(vocab_size=inner.get_vocab_size())), tokenizer=(cut, inner))
        pieces = open_tokenizer(path)._inner.pre_tokenizer.pre_tokenize_str("12345")
        counts[cut] = [piece for piece, _ in pieces]
    assert counts == {"gpt-2": ["12345"], "smollm": list("12345"), "llama-bpe": ["123", "45"]}


def test_a_folder_with_one_file(tmp_path: Path) -> None:
    model = build(config())
    write(tmp_path / "model.gguf", model)
    assert torch.equal(fourfold.load(tmp_path).embed.weight, model.embed.weight)
    assert open_config(tmp_path).hidden_size == 64
    write(tmp_path / "other.gguf", model)
    with pytest.raises(CheckpointError, match=r"holds several GGUF files \(model\.gguf, other\.gguf\); name one of them"):
        fourfold.load(tmp_path)


def test_convert_and_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways out of GGUF keep the numbers and the tokenizer."""
    inner = trained("smollm")
    path = write(tmp_path / "m.gguf", build(config(vocab_size=inner.get_vocab_size())), "Q8_0", ("smollm", inner))
    for to in ("fourfold", "hf"):
        convert_checkpoint(path, tmp_path / to, to=to, dtype="float32")
        made, given = fourfold.load(tmp_path / to), fourfold.load(path, dtype="float32")
        assert same_bits(made, given) and made.tokenizer.encode(TEXT) == given.tokenizer.encode(TEXT)
        assert made.tokenizer.settings.template == given.tokenizer.settings.template
    assert main(["plan", str(path), "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["stored"]["parameters"] == plan["total_parameters"] and set(plan["stored"]["formats"]) == {"Q8_0", "float32"}
    assert plan["stored"]["bytes"] < path.stat().st_size


WRONG: list[tuple[str, dict[str, Any], str]] = [
    (
        "architecture",
        {"architecture": "qwen2"},
        r"general\.architecture is 'qwen2', which cannot be read from GGUF; known is llama",
    ),
    ("experts", {"spoil": lambda w, t: w.add_expert_count(8)}, "llama with experts, which cannot be read"),
    ("a part", {"spoil": lambda w, t: w.add_uint16("split.count", 3)}, "is one of 3 parts; merge them"),
    (
        "extra",
        {"spoil": lambda w, t: t.update({"blk.0.ffn_gate_inp.weight": np.zeros((2, 64), np.float32)})},
        "ffn_gate_inp.*no place",
    ),
    ("stray", {"spoil": lambda w, t: t.update({"stray": np.zeros(32, np.float32)})}, "tensor stray has no place"),
    (
        "missing",
        {"spoil": lambda w, t: t.pop("blk.1.attn_q.weight")},
        r"layers\.1\.self_attn\.q_proj\.weight \[64, 64\] is missing",
    ),
    ("no embedding", {"spoil": lambda w, t: t.pop("token_embd.weight")}, r"tensor token_embd\.weight is missing"),
    (
        "misshapen",
        {"spoil": lambda w, t: t.update({"blk.1.ffn_up.weight": np.zeros((95, 64), np.float32)})},
        r"up_proj\.weight is \[95, 64\]",
    ),
    ("part of a head", {"spoil": lambda w, t: w.add_rope_dimension_count(8)}, "rope.dimension_count is 8, not the whole head"),
    ("stretched", {"spoil": lambda w, t: w.add_string("llama.rope.scaling.type", "yarn")}, "rope.scaling.type is 'yarn'"),
]


@pytest.mark.parametrize(("options", "said"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_what_is_wrong_is_one_line(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    path = write(tmp_path / "model.gguf", build(config()), **options)
    with pytest.raises(CheckpointError, match=said) as refused:
        fourfold.load(path)
    assert "\n" not in str(refused.value) and str(path) in str(refused.value)


@pytest.mark.parametrize("keep", [0, 3, 100, 5000, -1])
def test_a_cut_file(tmp_path: Path, keep: int) -> None:
    path = write(tmp_path / "model.gguf", build(config()))
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="truncated or not a GGUF file") as refused:
        fourfold.load(path)
    assert "\n" not in str(refused.value)


def test_unknown_tokenizers_are_named(tmp_path: Path) -> None:
    """The model loads all the same."""
    model = build(config())
    for field, value, said in [
        ("model", "llama", "ggml.model is 'llama'"),
        ("pre", "qwen2", "ggml.pre is 'qwen2'; known ones are"),
    ]:

        def spoil(writer: Any, _: object, field: str = field, value: str = value) -> None:
            writer.add_tokenizer_model(value if field == "model" else "gpt2")
            writer.add_tokenizer_pre(value if field == "pre" else "gpt-2")

        path = write(tmp_path / f"{field}.gguf", model, spoil=spoil)
        assert fourfold.load(path).tokenizer is None
        with pytest.raises(CheckpointError, match=said):
            fourfold.load_tokenizer(path)


def test_without_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "model.gguf", build(config()))
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(CheckpointError, match=r"reading GGUF needs the gguf package; pip install 'fourfold\[gguf\]'"):
        fourfold.load(path)


def real_file() -> Path | None:
    """SmolLM2-135M-Instruct (Apache-2.0), where experiments/nano/smollm2.py puts it, or where $SMOLLM2_GGUF says."""
    home = Path(os.environ.get("FOURFOLD_HOME") or Path.home() / ".cache" / "fourfold")
    places = [Path(os.environ.get("SMOLLM2_GGUF", "")), home / "cache" / "smollm2" / REAL]
    return next((place for place in places if place.is_file()), None)


FILE = real_file()  # before the tests have a home of their own


@torch.no_grad()
@pytest.mark.skipif(FILE is None, reason=f"{REAL} is not here; experiments/smollm2/run.py fetches it")
def test_a_real_model(theirs: Callable[[Path], torch.nn.Module]) -> None:
    """The same logits as transformers makes of the file, and it knows a capital."""
    assert FILE is not None
    model = fourfold.load(FILE, dtype="float32")
    tokenizer = model.tokenizer
    assert tokenizer.special("<|im_start|>") == 1 and tokenizer.vocab_size == model.config.vocab_size == 49152
    ids = torch.tensor([tokenizer.encode("The capital of France is Paris. The capital of Italy is")])
    logits = model(ids).logits
    assert_same_greedy(logits, theirs(FILE)(ids).logits)
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Rome"


def test_a_real_model_answers(capsys: pytest.CaptureFixture[str]) -> None:
    """In the chat format that the file's own template asks for."""
    if FILE is None:
        pytest.skip(f"{REAL} is not here; experiments/smollm2/run.py fetches it")
    question = "What is the capital of France?"
    assert main(["generate", str(FILE), "--prompt", question, "--chat", "--temperature", "0", "--max-tokens", "30", "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert "Paris" in answer["text"] and answer["finish_reason"] == "stop"
