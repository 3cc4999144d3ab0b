"""lm-evaluation-harness, unmodified, against a server: its scores are those of the model itself."""

import json
import math
from pathlib import Path

import pytest
import torch

from fourfold.formats.ours import save
from tests.server.conftest import Live

pytestmark = pytest.mark.slow
evaluator = pytest.importorskip("lm_eval.evaluator", reason="lm-eval is not installed; pip install 'lm-eval[api]'")

DOCUMENTS = [
    {"question": "the cat sat on", "choices": [" the mat", " a dog", " Köln"], "gold": 0},
    {"question": "and the dog", "choices": [" ran off.", " und 🙂"], "gold": 0},
    {"question": "Grüße aus", "choices": [" Köln", " the mat", " dazu", " cat"], "gold": 0},
]


@pytest.fixture
def folder(live: Live, tmp_path: Path) -> Path:
    """The served model as a folder whose tokenizer lm-eval opens, and a file of documents beside it."""
    served = live.serving.models.own()[0]
    (tmp_path / "documents.jsonl").write_text("\n".join(map(json.dumps, DOCUMENTS)), "utf-8")
    return save(served.model, tmp_path / "model", served.tokenizer)


def task(folder: Path, **more: object) -> dict:
    files = {"test": str(folder.parent / "documents.jsonl")}
    own = {"task": "own", "dataset_path": "json", "dataset_kwargs": {"data_files": files}, "test_split": "test"}
    return own | {"doc_to_text": "{{question}}", **more}


def test_loglikelihoods_are_those_of_the_model(live: Live, folder: Path) -> None:
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    lm = LocalCompletionsAPI(
        base_url=f"{live.url}/v1/completions", model="tiny", tokenizer=str(folder), batch_size=3, max_length=500
    )
    choices = {"output_type": "multiple_choice", "doc_to_choice": "choices", "doc_to_target": "gold"}
    found = evaluator.simple_evaluate(lm, tasks=[task(folder, **choices)], log_samples=True, bootstrap_iters=0)
    model, compared = live.serving.models.own()[0].model, 0
    for sample in found["samples"]["own"]:
        for (context, continuation), ((logprob, greedy),) in zip(sample["arguments"], sample["resps"], strict=True):
            before, after = lm._encode_pair(context, continuation)
            with torch.inference_mode():
                logprobs = model(torch.tensor([before + after])).logits[0].float().log_softmax(-1)[len(before) - 1 : -1]
            own = logprobs[range(len(after)), after]
            assert math.isclose(float(logprob), own.sum().item(), abs_tol=1e-3)
            assert bool(greedy) == bool((own == logprobs.max(-1).values).all())
            compared += 1
    assert compared == sum(len(document["choices"]) for document in DOCUMENTS)


def test_chats_are_answered(live: Live, folder: Path) -> None:
    from lm_eval.models.openai_completions import LocalChatCompletion

    lm = LocalChatCompletion(base_url=f"{live.url}/v1/chat/completions", model="tiny")
    said = {
        "output_type": "generate_until",
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": {"until": ["."], "max_gen_toks": 8},
    }
    found = evaluator.simple_evaluate(
        lm, tasks=[task(folder, **said)], log_samples=True, apply_chat_template=True, bootstrap_iters=0
    )
    for sample in found["samples"]["own"]:
        messages = [{"role": "user", "content": sample["doc"]["question"]}]
        options = {"model": "tiny", "messages": messages, "temperature": 0, "max_tokens": 8, "stop": ["."], "seed": 1234}
        assert sample["resps"][0][0] == live.client.chat.completions.create(**options).choices[0].message.content
