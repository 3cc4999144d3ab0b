"""A byte-level BPE tokenizer in which typed text can never become a control token.

The file is an ordinary `tokenizer.json`, so other tools open it too; they, however, may turn a typed `<|user|>` into
the control token. Here `encode` reads it as plain characters: control tokens are only put in by id (see chat.py).
The same holds for published tokenizers, whose files mark only some of their control tokens as special.
"""

import codecs
import hashlib
import json
import os
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

import tokenizers
import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from fourfold.errors import DataError
from fourfold.text.chat import CHAT_TEMPLATE
from fourfold.text.settings import GENERATION, TextSettings

NAMED = """pad bos eos system user assistant end think /think tool_call /tool_call tool_result /tool_result
    image /image audio /audio video /video row frame patch draw /draw film /film"""
SPECIALS = [f"<|{name}|>" for name in NAMED.split()]
SPECIALS += [f"<|reserved_{i}|>" for i in range(32 - len(SPECIALS))]

# Ends of a text or of a turn, ours and published; a vocabulary has one to three of them.
ENDS = "<|eos|> <|end|> <｜end▁of▁sentence｜> <|im_end|> <|endoftext|> <|eot_id|> <|end_of_text|> </s>".split()

# Words with the one character before them, single digits, runs of signs, line ends, spaces but for a word's own.
PIECES = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class Tokenizer:
    """Text to ids and back. In ours, ids 0-31 are the control tokens of `SPECIALS`.

    `special_ids` are those that decoding leaves out; `settings` is what the folder says beside tokenizer.json.
    """

    def __init__(self, inner: tokenizers.Tokenizer, settings: TextSettings | None = None):
        added = inner.get_added_tokens_decoder()
        self._added = {id: token.content for id, token in added.items()}
        self._controls = {token.content: id for id, token in added.items() if token.special or _is_tag(token.content)}
        self.special_ids = frozenset(id for id, token in added.items() if token.special)
        self._shown = [name for name, id in self._controls.items() if id not in self.special_ids]
        if self._shown:  # the library matches these in typed text, unless they are special too
            inner.add_special_tokens([AddedToken(name, normalized=False, special=True) for name in self._shown])
        inner.encode_special_tokens = True  # typed control tokens are ordinary characters
        self._inner = inner
        self.settings = settings or TextSettings()

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Tokenizer":
        """From a folder with a tokenizer.json, or the file itself; DataError when there is none or it is broken."""
        path = Path(path)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not file.is_file():
            raise DataError(f"{file}: no tokenizer here; give a folder with a tokenizer.json")
        try:
            inner = tokenizers.Tokenizer.from_file(str(file))
        except Exception as error:  # the library raises bare Exception
            raise DataError(f"{file}: is not a tokenizer ({str(error).splitlines()[0]}); copy it again") from error
        return cls(inner, TextSettings.read(path) if path.is_dir() else None)

    @classmethod
    def train(cls, texts: Iterable[str], vocab_size: int = 8192) -> "Tokenizer":
        """Learn the merges from `texts`; the same texts give the same tokenizer."""
        inner = tokenizers.Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(PIECES), behavior="isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
        inner.decoder = decoders.ByteLevel()
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        trainer = trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=SPECIALS,
            initial_alphabet=alphabet,
            max_token_length=16,
            show_progress=False,
        )
        inner.train_from_iterator(texts, trainer)
        return cls(inner)

    def save(self, folder: str | os.PathLike) -> None:
        """Write tokenizer.json and what belongs to it into an existing folder; a published one's files as they were."""
        folder = Path(folder)
        if self.settings.files and not self._ours:
            for name, content in self.settings.files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(content)
            return
        config, template = self.settings.tokenizer_config(), self.settings.template
        if GENERATION in self.settings.files:
            (folder / GENERATION).write_bytes(self.settings.files[GENERATION])
        if self._ours:
            named = {f"{name}_token": f"<|{name}|>" for name in ("bos", "eos", "pad") if f"<|{name}|>" in self._controls}
            config = {
                "tokenizer_class": "PreTrainedTokenizerFast",
                **named,
                "additional_special_tokens": [t for t in self._controls if t not in named.values()],
                "clean_up_tokenization_spaces": False,
                "chat_template": CHAT_TEMPLATE,
            }
            template = CHAT_TEMPLATE
        (folder / "tokenizer.json").write_text(self._definition(), "utf-8")
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1, ensure_ascii=False) + "\n", "utf-8")
        if template is not None:
            (folder / "chat_template.jinja").write_text(template, "utf-8")

    @property
    def _ours(self) -> bool:
        return {"<|bos|>", "<|tool_result|>"} <= self._controls.keys()

    def _definition(self) -> str:
        """The text of tokenizer.json, with the tokens that it marked as ordinary marked so again."""
        text = self._inner.to_str(pretty=True)
        if not self._shown:
            return text
        whole = json.loads(text)
        for token in whole["added_tokens"]:
            token["special"] = token["id"] in self.special_ids
        return json.dumps(whole, ensure_ascii=False, indent=2)

    @property
    def vocab_size(self) -> int:
        return self._inner.get_vocab_size()

    @cached_property
    def checksum(self) -> str:
        """sha256 of the whole definition: what a cache of encoded text depends on."""
        return hashlib.sha256(self._inner.to_str().encode()).hexdigest()

    def special(self, name: str) -> int:
        """The id of a control token, by `bos`, `<|bos|>` or any other full name; KeyError names an unknown one."""
        return self._controls[name if name in self._controls else f"<|{name}|>"]

    @property
    def controls(self) -> frozenset[str]:
        """The names of all control tokens: what typed text can never become."""
        return frozenset(self._controls)

    @cached_property
    def ends(self) -> frozenset[int]:
        """The ids that end an answer: ends of text and of turns, and those that the folder names."""
        named = (name for name in [*ENDS, self.settings.eos] if name in self._controls)
        return frozenset(self._controls[name] for name in named) | self.settings.end_ids

    @cached_property
    def prefix(self) -> list[int]:
        """What a text begins with: the token for the beginning, where this tokenizer puts one."""
        bos = "<|bos|>" if self._ours else self.settings.bos
        if bos in self._controls and (self._ours or self.settings.add_bos):
            return [self._controls[bos]]
        if self.settings.add_bos is not None:
            return []
        return [id for id in self._inner.encode("", add_special_tokens=True).ids if id not in self.ends]

    def encode(self, text: str) -> list[int]:
        """Ids of ordinary text: never a control token, no bos or eos added."""
        return self._inner.encode(sound(text), add_special_tokens=False).ids

    def encode_many(self, texts: list[str]) -> list[list[int]]:
        """`encode` of each, on all cores."""
        return [e.ids for e in self._inner.encode_batch_fast([sound(t) for t in texts], add_special_tokens=False)]

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """Text of ids; bytes that are not UTF-8 become U+FFFD, ids outside the vocabulary nothing."""
        return b"".join(self.bytes_of(i, skip_special) for i in ids).decode("utf-8", "replace")

    def bytes_of(self, id: int, skip_special: bool = True) -> bytes:
        """What one id adds to the text."""
        id = int(id)
        if not 0 <= id < len(self._bytes) or (skip_special and id in self.special_ids):
            return b""
        return self._bytes[id]

    def token(self, id: int) -> str | None:
        """The raw token string (in the byte alphabet of the file)."""
        return self._inner.id_to_token(id)

    @cached_property
    def _bytes(self) -> list[bytes]:
        read = _spelled if self._inner.token_to_id("<0x0A>") is not None else _byte_level
        tokens = (self._inner.id_to_token(i) or "" for i in range(self.vocab_size))
        return [self._added[i].encode() if i in self._added else read(token) for i, token in enumerate(tokens)]

    def compression(self) -> tuple[torch.Tensor, int]:
        """Classes of tokens that read alike (case, accents, width, leading space), for hashed n-gram memory.

        Returns (int64 [vocab_size], number of classes). Classes are numbered by the first id in them; a control token
        or a token of partial UTF-8 is a class of its own.
        """
        keys: dict[str, int] = {}
        return torch.tensor([keys.setdefault(self._key(i), len(keys)) for i in range(self.vocab_size)]), len(keys)

    def _key(self, id: int) -> str:
        text = self.decode([id], skip_special=False)
        if id in self.special_ids or "\ufffd" in text:
            return f"\ue001{self.token(id)}"  # marked, so that no ordinary text shares the key
        return _ALIKE.normalize_str(text) or text


_SPACE = "\ue000"  # stands for a lone space while the ends are stripped
_ALIKE = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.NFD(),
        normalizers.StripAccents(),
        normalizers.Lowercase(),
        normalizers.Replace(Regex(r"[ \t\r\n]+"), " "),
        normalizers.Replace(Regex(r"^ $"), _SPACE),
        normalizers.Strip(),
        normalizers.Replace(_SPACE, " "),
    ]
)


class StreamDecoder:
    """Text as ids arrive: a character cut in the middle of its UTF-8 bytes is held back until it is whole."""

    def __init__(self, tokenizer: Tokenizer, skip_special: bool = True):
        self._tokenizer, self._skip = tokenizer, skip_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def push(self, id: int) -> str:
        """The text that this id completes (may be empty)."""
        return self._decoder.decode(self._tokenizer.bytes_of(id, self._skip))

    def finish(self) -> str:
        """What was held back, as U+FFFD."""
        return self._decoder.decode(b"", final=True)


def _is_tag(token: str) -> bool:
    """Whether an added token that a file marks as ordinary is a control token all the same: <think>, ｜DSML｜, [INST].

    Others are characters that a vocabulary lacked (V1 adds ü and twelve more), which text is free to use.
    """
    return len(token) > 2 and token[0] in "<[｜"


def _byte_alphabet() -> dict[str, int]:
    """Byte-level BPE writes bytes as printable characters: printable Latin-1 as itself, the rest from U+0100 on."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [b for b in range(256) if b not in plain]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(rest)}


_ALPHABET = _byte_alphabet()


def _byte_level(token: str) -> bytes:
    return bytes(_ALPHABET[c] for c in token if c in _ALPHABET)


def _spelled(token: str) -> bytes:
    """SentencePiece writes characters as themselves, a space as U+2581, and a lone byte as <0x0A>."""
    lone = re.fullmatch("<0x([0-9A-F]{2})>", token)
    return bytes.fromhex(lone[1]) if lone else token.replace("\u2581", " ").encode()


def sound(text: str) -> str:
    """Lone surrogates (which JSON can carry, UTF-8 cannot) become "?"."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")
