"""Golden files: what they hold, and that they know their weights."""

import json
from pathlib import Path

import pytest
import torch

import fourfold
from fourfold.errors import DataError
from fourfold.evals.golden import FILE, POSITIONS, TOP, read_golden, write_golden
from fourfold.formats.ours import save


def test_a_file_holds_the_best_logits_of_the_last_positions(checkpoint: Path, tmp_path: Path) -> None:
    model = fourfold.load("tiny", dtype="float32")
    folder = save(model, tmp_path / "copy", model.tokenizer)
    prompts = {"short": [1, 40], "long": [1, *range(40, 90)]}
    about = read_golden(write_golden(model, folder, prompts).parent)
    assert about["dtype"] == "float32" and (folder / FILE).stat().st_size < 20_000
    assert {prompt["name"]: prompt["ids"] for prompt in about["prompts"]} == prompts
    short, long = about["prompts"]
    assert short["positions"] == [0, 1] and long["positions"] == [47, 48, 49, 50][-POSITIONS:]
    with torch.inference_mode():
        logits = model(torch.tensor([long["ids"]])).logits[0, long["positions"]]
    assert long["top_ids"] == logits.topk(TOP).indices.tolist()
    assert torch.tensor(long["top_logits"]) == pytest.approx(logits.topk(TOP).values.numpy(), abs=1e-5)
    assert long["logsumexp"] == pytest.approx(logits.logsumexp(-1).tolist(), abs=1e-5)


def test_a_file_of_other_weights_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    model = fourfold.load("tiny", dtype="float32")
    folder = save(model, tmp_path / "copy", model.tokenizer)
    path = write_golden(model, folder, {"text": [1, 40]})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights_sha256": "0"}))
    with pytest.raises(DataError, match="was written for other weights"):
        read_golden(folder)
