"""Every bundled model gives the golden logits that ship beside it, on this machine too."""

from pathlib import Path

import pytest
import torch

import fourfold
from fourfold.evals.golden import FILE, read_golden
from fourfold.paths import bundled
from tests.compare import assert_close, assert_same_tokens

FOLDERS = sorted(path.parent for path in (bundled("models") or Path("models")).glob(f"*/{FILE}"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
@torch.inference_mode()
def test_logits_are_the_golden_ones(folder: Path) -> None:
    about = read_golden(folder)
    model = fourfold.load(folder, dtype=about["dtype"])
    assert about["prompts"]
    for prompt in about["prompts"]:
        logits = model(torch.tensor([prompt["ids"]])).logits[0, prompt["positions"]]
        ids, expected = torch.tensor(prompt["top_ids"]), torch.tensor(prompt["top_logits"])
        assert_close(logits.gather(-1, ids), expected, f"{prompt['name']}: top logits")
        assert_close(logits.logsumexp(-1), torch.tensor(prompt["logsumexp"]), f"{prompt['name']}: logsumexp")
        for row, best, own in zip(logits, prompt["top_ids"], logits.argmax(-1).tolist(), strict=True):
            assert_same_tokens([own], best[:1], row[None], f"{prompt['name']}: greedy token")
