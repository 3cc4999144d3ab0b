"""/v1/completions on the real engine: what lm-eval and other scorers ask of it, against the model itself."""

import math
from collections.abc import Callable

import pytest
import torch

from fourfold.engine.request import Request
from fourfold.engine.sampler import Sampling
from tests.server.conftest import Live

TEXT = "the cat sat on the mat"


def direct(live: Live, ids: list[int]) -> torch.Tensor:
    """Log-probabilities [n, V] of what follows each of the ids, by one forward."""
    model = live.serving.models.own()[0].model
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_prompts_are_scored_as_lm_eval_asks(live: Live, max_tokens: int) -> None:
    """Its requests: token ids, several at once, echo, logprobs 1; it reads [context : -1] of both lists, and takes max_tokens 1."""
    tokenizer = live.serving.models.own()[0].tokenizer
    rows = [tokenizer.encode(text) for text in (TEXT, "Grüße aus Köln, 漢字 und 🙂", "dog")]
    rows = [tokenizer.prefix + row for row in rows]
    asked = {"prompt": rows, "temperature": 0, "max_tokens": max_tokens, "logprobs": 1, "echo": True, "seed": 1234}
    answer = live.post("/v1/completions", model="tiny", **asked)
    assert answer.status_code == 200, answer.text
    choices = answer.json()["choices"]
    assert [choice["index"] for choice in choices] == [0, 1, 2]
    for row, choice in zip(rows, choices, strict=True):
        logprobs, found = direct(live, row), choice["logprobs"]
        assert len(found["tokens"]) == len(found["token_logprobs"]) == len(found["top_logprobs"]) == len(row) + max_tokens
        assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
        for place in range(1, len(row)):
            best, own = logprobs[place - 1].max().item(), logprobs[place - 1, row[place]].item()
            assert math.isclose(found["token_logprobs"][place], own, abs_tol=1e-3)
            assert math.isclose(max(found["top_logprobs"][place].values()), best, abs_tol=1e-3)
        said = tokenizer.decode(row)
        assert choice["text"].startswith(said) and (max_tokens or choice["text"] == said)
        assert choice["finish_reason"] in ("length", "stop")
    assert answer.json()["usage"]["prompt_tokens"] == sum(map(len, rows))


def test_text_begins_as_the_models_texts_do(live: Live) -> None:
    served = live.serving.models.own()[0]
    ids = served.tokenizer.prefix + served.tokenizer.encode(TEXT)
    by_text, by_ids = (
        live.client.completions.create(model="tiny", prompt=prompt, max_tokens=5, temperature=0, logprobs=2)
        for prompt in (TEXT, ids)
    )
    assert by_text.choices[0].text == by_ids.choices[0].text
    assert by_text.choices[0].logprobs.token_logprobs == by_ids.choices[0].logprobs.token_logprobs
    assert all(len(top) in (2, 3) for top in by_text.choices[0].logprobs.top_logprobs)


def test_streamed_is_whole(live: Live) -> None:
    asked = {"model": "tiny", "prompt": [TEXT, "dog"], "max_tokens": 6, "temperature": 0, "logprobs": 1, "echo": True, "n": 2}
    whole = live.client.completions.create(**asked, seed=3)
    chunks = list(live.client.completions.create(**asked, seed=3, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    for choice in whole.choices:
        mine = [chunk.choices[0] for chunk in chunks[:-1] if chunk.choices[0].index == choice.index]
        assert "".join(each.text for each in mine) == choice.text
        assert mine[-1].finish_reason == choice.finish_reason and all(each.finish_reason is None for each in mine[:-1])
        for name in ("tokens", "token_logprobs", "text_offset"):
            joined = [value for each in mine if each.logprobs for value in getattr(each.logprobs, name)]
            wanted = getattr(choice.logprobs, name)
            assert joined == pytest.approx(wanted, abs=1e-4) if name == "token_logprobs" else joined == wanted


def test_the_same_through_the_engine(live: Live) -> None:
    served = live.serving.models.own()[0]
    ids = served.tokenizer.prefix + served.tokenizer.encode(TEXT)
    (answer,) = served.engine.generate([Request(ids, Sampling(temperature=0.8, seed=4, max_tokens=12))])
    choice = live.client.completions.create(model="tiny", prompt=TEXT, temperature=0.8, seed=4, max_tokens=12).choices[0]
    assert (choice.text, choice.finish_reason) == (answer.text, answer.finish_reason)


@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"prompt": [70_000]}, "prompt"),
        ({"prompt": [[3], [4, 70_000]]}, "prompt[1]"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": []}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "max_tokens": -1}, "max_tokens"),
        ({"prompt": "a", "logprobs": 100}, "logprobs"),
        ({"prompt": "a", "stop": [""]}, "stop"),
        ({"prompt": "a", "logit_bias": {"x": 1}}, "logit_bias"),
        ({"prompt": "a", "n": 1000}, None),
        ({"prompt": "cat " * 2000}, "prompt"),
    ],
)
def test_faults_are_named(live: Live, asked: dict, field: str | None) -> None:
    answer = live.post("/v1/completions", model="tiny", **asked)
    error = answer.json()["error"]
    assert answer.status_code == 400 and error["type"] == "invalid_request_error" and "\n" not in error["message"]
    if field is not None:
        assert error["param"].startswith(field) and error["message"].startswith(field)


def test_ids_and_back(live: Live) -> None:
    served = live.serving.models.own()[0]
    ids = live.post("/tokenize", prompt=TEXT, return_token_strs=True).json()
    assert ids["tokens"] == served.tokenizer.prefix + served.tokenizer.encode(TEXT) and ids["count"] == len(ids["tokens"])
    assert "".join(ids["token_strs"]) == live.post("/detokenize", model="tiny", tokens=ids["tokens"]).json()["prompt"]
    chat = live.post("/tokenize", model="tiny", messages=[{"role": "user", "content": TEXT}]).json()["tokens"]
    assert chat == served.chat.encode(served.tokenizer, [{"role": "user", "content": TEXT}])
    assert live.post("/tokenize").status_code == 400


def test_a_gap_is_filled_by_models_that_can(saying: Callable[..., Live], monkeypatch: pytest.MonkeyPatch) -> None:
    live = saying("sat")
    tokenizer = live.serving.models.own()[0].tokenizer
    marks = {"<fim_prefix>": 3, "<fim_suffix>": 4, "<fim_middle>": 5}
    monkeypatch.setattr(tokenizer, "_controls", tokenizer._controls | marks)
    answer = live.client.completions.create(model="tiny", prompt="the cat ", suffix=" on the mat")
    assert answer.choices[0].text == "sat"
    first, last = tokenizer.encode("the cat "), tokenizer.encode(" on the mat")
    assert list(live.engine.asked[0].prompt) == [*tokenizer.prefix, 3, *first, 4, *last, 5]
