"""What a checkpoint folder says about its text, beside tokenizer.json: the chat template, first and last tokens.

Published generations share a `model_type` and differ in these files, so the chat format is chosen by them (chats/choose.py).
"""

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fourfold.errors import DataError

GENERATION = "generation_config.json"
# Small text files that belong to the tokenizer: saving a checkpoint again writes them as they were.
KEPT = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", GENERATION)
SAMPLED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


@dataclass(frozen=True)
class TextSettings:
    """Facts about the text of a published checkpoint; None where the folder does not say.

    `template` is the Jinja chat template, `bos` and `eos` are token strings; of generation_config.json `end_ids` are the ids that
    end an answer, and `sampling` is how it would have answers drawn (fields of SAMPLED); `encoder` is the source of the Python
    encoder that folders without a template ship, `files` the files as they were.
    """

    model_type: str | None = None
    template: str | None = None
    bos: str | None = None
    eos: str | None = None
    add_bos: bool | None = None
    end_ids: frozenset[int] = frozenset()
    sampling: Mapping[str, float] = field(default_factory=dict)
    encoder: str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, folder: Path) -> "TextSettings":
        """Those of a folder. Raises DataError in one line for a file that is not JSON."""
        config, text, generation = (_json(folder / f) for f in ("config.json", "tokenizer_config.json", GENERATION))
        encoders = sorted(folder.glob("encoding/encoding_*.py"))
        files = [folder / name for name in KEPT] + encoders
        ends = [part.get("eos_token_id") for part in (generation, config)]
        add_bos = text.get("add_bos_token")
        return cls(
            model_type=config.get("model_type") if isinstance(config.get("model_type"), str) else None,
            template=_template(folder, text),
            bos=_token(text.get("bos_token")),
            eos=_token(text.get("eos_token")),
            add_bos=add_bos if isinstance(add_bos, bool) else None,
            end_ids=frozenset(i for end in ends for i in (end if isinstance(end, list) else [end]) if isinstance(i, int)),
            sampling=_sampling(generation),
            encoder=encoders[0].read_text("utf-8", "replace") if encoders else None,
            files={file.relative_to(folder).as_posix(): file.read_bytes() for file in files if file.is_file()},
        )

    def tokenizer_config(self) -> dict[str, Any]:
        """A tokenizer_config.json that says the same, for a tokenizer that came from no folder (GGUF)."""
        said = {"bos_token": self.bos, "eos_token": self.eos, "add_bos_token": self.add_bos, "chat_template": self.template}
        plain = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
        return plain | {key: value for key, value in said.items() if value is not None}

    def constant(self, *names: str) -> str | None:
        """A text that the folder's encoder assigns to one of these names; its code is read as a tree, never run."""
        try:
            body = ast.parse(self.encoder or "").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None
        for node in body:
            if not isinstance(node, ast.Assign | ast.AnnAssign):
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            named = any(isinstance(target, ast.Name) and target.id in names for target in targets)
            if named and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                return node.value.value
        return None


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON ({error}); copy it again") from None
    return content if isinstance(content, dict) else {}


def _sampling(generation: dict[str, Any]) -> dict[str, float]:
    """Greedy where it says so; a top_k below 0 means off, as elsewhere."""
    if generation.get("do_sample") is False:
        return {"temperature": 0.0}
    found = {name: value for name, value in generation.items() if name in SAMPLED and type(value) in (int, float)}
    return found | ({"top_k": max(found["top_k"], 0)} if "top_k" in found else {})


def _token(value: object) -> str | None:
    """A token is written as its text, or as an object that holds it."""
    value = value.get("content") if isinstance(value, dict) else value
    return value if isinstance(value, str) else None


def _template(folder: Path, text: dict[str, Any]) -> str | None:
    """The template file, else the field; of several named ones the one called default."""
    if (folder / "chat_template.jinja").is_file():
        return (folder / "chat_template.jinja").read_text("utf-8", "replace")
    value = text.get("chat_template")
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        value = named.get("default") or next(iter(named.values()), None)
    return value if isinstance(value, str) else None
