"""GGUF files of llama-style models, through the `gguf` package: read as if they were a folder in Llama's format.

    token_embd  output_norm  output (absent when tied)  rope_freqs (Llama 3's stretched angles)
    blk.N.{attn_norm,attn_q,attn_k,attn_v,attn_output,ffn_norm,ffn_gate,ffn_up,ffn_down}.weight (and .bias)

Rows of q and k are permuted against Llama's format: GGUF turns neighbours (2j, 2j+1), the published files turn halves (j, j + d/2).
Everything else of a model is in the file's metadata, the tokenizer too.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Inner
from torch import Tensor

from fourfold.config import RopeScaling
from fourfold.errors import CheckpointError
from fourfold.formats.llama import ADAPTER
from fourfold.formats.published import Source, config_of
from fourfold.formats.shards import OnDisk, Part
from fourfold.model.rope import frequencies
from fourfold.text.settings import TextSettings
from fourfold.text.tokenizer import Tokenizer

OUTER = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}

# How text is cut before merging, by `tokenizer.ggml.pre`; and those whose whole words need no merges.
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTES = pre_tokenizers.ByteLevel(add_prefix_space=False)
CUTS = {
    "gpt-2": BYTES,
    "smollm": pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTES]),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}
WORDS_FIRST = ("llama-bpe",)
CONTROL, USER_DEFINED = 3, 4  # of tokenizer.ggml.token_type


class GgufTensor(NamedTuple):
    """A tensor of the file. `heads`: how many heads' rows are to be put back in Llama's order, None for none."""

    file: Path
    tensor: Any
    heads: int | None

    @property
    def files(self) -> tuple[Path, ...]:
        return (self.file,)

    @property
    def dtype(self) -> torch.dtype:
        return PLAIN.get(self.tensor.tensor_type.name, torch.bfloat16)

    @property
    def codes(self) -> str | None:
        kind = self.tensor.tensor_type.name
        return None if kind in PLAIN else kind

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in reversed(self.tensor.shape))

    @property
    def bytes(self) -> int:
        return int(self.tensor.n_bytes)

    def read(self, part: Part = (), dtype: torch.dtype | None = None) -> Tensor:
        from gguf.quants import dequantize

        try:
            values = dequantize(self.tensor.data, self.tensor.tensor_type)
        except (RuntimeError, ValueError) as error:
            kind = self.tensor.tensor_type.name
            said = f"tensor {self.tensor.name} is {kind}, which the gguf package cannot decode ({error}); take another file"
            raise CheckpointError(f"{self.file}: {said}") from None
        whole = torch.tensor(values).reshape(self.shape)
        if self.heads is not None:
            whole = whole.unflatten(0, (self.heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        return whole[part].to(dtype or self.dtype)


def open_file(path: Path) -> Source:
    """A GGUF file as a source. Raises CheckpointError for one that is broken, not llama-style or holds what has no place."""
    reader = _reader(path)
    stored = {tensor.name: tensor for tensor in reader.tensors}
    about = _Metadata(path, reader)
    _check_kind(about)
    published = _config(about, stored)
    heads = {"attn_q": published["num_attention_heads"], "attn_k": published["num_key_value_heads"]}
    tensors: dict[str, OnDisk] = {}
    for name, tensor in stored.items():
        if name != "rope_freqs.weight":
            published_name = _published_name(path, name)
            tensors[published_name] = GgufTensor(path, tensor, heads.get(name.split(".")[-2]))
    return Source(path, ADAPTER, config_of(ADAPTER, published, path), tensors)


def open_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer of the file's metadata. Raises CheckpointError when it is of a kind that we cannot rebuild."""
    about = _Metadata(path, _reader(path))
    kind, cut = about.get("tokenizer.ggml.model"), about.get("tokenizer.ggml.pre", "gpt-2")
    if kind != "gpt2":
        raise CheckpointError(f"{path}: tokenizer.ggml.model is {kind!r}, which cannot be rebuilt; use the original tokenizer.json")
    if cut not in CUTS:
        known = ", ".join(CUTS)
        raise CheckpointError(f"{path}: tokenizer.ggml.pre is {cut!r}; known ones are {known}; use the original tokenizer.json")
    tokens = about.need("tokenizer.ggml.tokens")
    kinds = about.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    merges = [tuple(merge.split(" ")) for merge in about.need("tokenizer.ggml.merges")]
    inner = Inner(models.BPE({token: i for i, token in enumerate(tokens)}, merges, ignore_merges=cut in WORDS_FIRST))
    inner.pre_tokenizer, inner.decoder = CUTS[cut], decoders.ByteLevel()
    for wanted in (CONTROL, USER_DEFINED):
        added = [token for token, kind in zip(tokens, kinds, strict=True) if kind == wanted]
        inner.add_tokens([AddedToken(token, normalized=False, special=wanted == CONTROL) for token in added])
    bos, eos = (about.get(f"tokenizer.ggml.{name}_token_id") for name in ("bos", "eos"))
    settings = TextSettings(
        model_type="llama",
        template=about.get("tokenizer.chat_template"),
        bos=None if bos is None else tokens[bos],
        eos=None if eos is None else tokens[eos],
        add_bos=about.get("tokenizer.ggml.add_bos_token"),
        end_ids=frozenset() if eos is None else frozenset([eos]),
    )
    return Tokenizer(inner, settings)


class _Metadata:
    """The file's fields by name."""

    def __init__(self, path: Path, reader: Any) -> None:
        self.path, self.fields = path, reader.fields

    def get(self, name: str, default: Any = None) -> Any:
        return self.fields[name].contents() if name in self.fields else default

    def need(self, name: str) -> Any:
        if name not in self.fields:
            raise CheckpointError(f"{self.path}: has no field {name}; convert the model again")
        return self.get(name)


def _reader(path: Path) -> Any:
    try:
        from gguf import GGUFReader
    except ImportError:
        raise CheckpointError(f"{path}: reading GGUF needs the gguf package; pip install 'fourfold[gguf]'") from None
    try:
        return GGUFReader(path)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; name a GGUF file that is there") from None
    except Exception as error:  # whatever numpy says of bytes that are not there
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{path}: truncated or not a GGUF file ({reason}); copy it again") from None


def _check_kind(about: _Metadata) -> None:
    kind, parts = about.get("general.architecture"), about.get("split.count", 1)
    if kind != "llama" or about.get("llama.expert_count", 0):
        said = f"general.architecture is {kind!r}" if kind != "llama" else "llama with experts"
        raise CheckpointError(f"{about.path}: {said}, which cannot be read from GGUF; known is llama without experts")
    if parts > 1:
        raise CheckpointError(f"{about.path}: is one of {parts} parts; merge them into one file first")


def _config(about: _Metadata, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json that the file would have as a folder in Llama's format."""
    sizes = {ours: about.need(f"llama.{theirs}") for ours, theirs in SIZES.items()}
    heads = sizes["num_attention_heads"]
    if "token_embd.weight" not in stored:
        raise CheckpointError(f"{about.path}: tensor token_embd.weight is missing; copy the file again")
    config = sizes | {
        "vocab_size": int(stored["token_embd.weight"].shape[1]),
        "num_key_value_heads": about.get("llama.attention.head_count_kv", heads),
        "head_dim": about.get("llama.attention.key_length", sizes["hidden_size"] // max(heads, 1)),
        "rope_theta": about.get("llama.rope.freq_base", 10000.0),
        "tie_word_embeddings": "output.weight" not in stored,
        "attention_bias": "blk.0.attn_q.bias" in stored,
        **{f"{name}_token_id": about.get(f"tokenizer.ggml.{theirs}_token_id") for name, theirs in _TOKENS.items()},
    }
    turned, stretched = about.get("llama.rope.dimension_count", config["head_dim"]), about.get("llama.rope.scaling.type", "none")
    if turned != config["head_dim"]:
        raise CheckpointError(f"{about.path}: llama.rope.dimension_count is {turned}, not the whole head; it cannot be honoured")
    if stretched != "none":
        raise CheckpointError(f"{about.path}: llama.rope.scaling.type is {stretched!r}, which cannot be honoured from GGUF")
    if "rope_freqs.weight" in stored:
        config["rope_scaling"] = _llama3(about.path, stored["rope_freqs.weight"], config)
    return config


_TOKENS = {"bos": "bos", "eos": "eos", "pad": "padding"}


def _llama3(path: Path, stored: Any, config: Mapping[str, Any]) -> dict[str, Any]:
    """Llama 3's stretching from the divisors that it makes: the largest is its factor, the rest as in Llama 3.1 and 3.2."""
    divisors = GgufTensor(path, stored, None).read(dtype=torch.float32)
    rule = RopeScaling(type="llama3", factor=float(divisors.max()), original_max_position_embeddings=8192)
    width, theta = config["head_dim"], config["rope_theta"]
    expected = frequencies(width, theta, None) / frequencies(width, theta, rule)
    if expected.shape != divisors.shape or not torch.allclose(expected, divisors, rtol=1e-4):
        raise CheckpointError(f"{path}: rope_freqs.weight is not the rule of Llama 3.1, and no other is known; take another file")
    words = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return {"rope_type": "llama3"} | {name: getattr(rule, name) for name in words}


def _published_name(path: Path, name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    *place, stem, kind = name.split(".") if "." in name else ["", name, ""]
    if not place and stem in OUTER:
        return f"{OUTER[stem]}.{kind}"
    if len(place) == 2 and place[0] == "blk" and stem in INNER:
        return f"model.layers.{place[1]}.{INNER[stem]}.{kind}"
    raise CheckpointError(f"{path}: tensor {name} has no place in a llama-style model; take a file of such a model")
