"""Held-out loss: every token once, the same as one plain forward, and in bytes that are those of the text."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from fourfold.data.corpus import Corpus
from fourfold.data.documents import Document
from fourfold.errors import ConfigError
from fourfold.evals.perplexity import Scored, encode, logits_scorer, model_scorer, perplexity, score, summary, windows
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer


@given(st.integers(1, 300), st.integers(2, 60), st.data())
def test_windows_score_every_place_once_with_the_overlap_before_it(length: int, window: int, data: st.DataObject) -> None:
    overlap = data.draw(st.integers(1, window - 1))
    parts = list(windows(length, window, overlap))
    assert [place for _, first, stop in parts for place in range(first, stop)] == list(range(1, length))
    assert all(stop - start <= window and first - start >= (overlap if start else 1) for start, first, stop in parts)


def test_whole_documents_give_what_one_forward_gives(model: Transformer, corpus: Corpus) -> None:
    texts = [text for text in encode(corpus.documents("held_out"), model.tokenizer) if len(text.ids) < 200]
    for text, scored in zip(texts, score(texts, model_scorer(model), window=200, at_once=300), strict=True):
        with torch.inference_mode():
            nats = F.cross_entropy(model(text.ids[None, :-1]).logits[0], text.ids[1:], reduction="none")
        kept = text.sizes[1:] > 0
        assert scored.tokens == int(kept.sum()) and scored.id == text.id
        assert scored.nats == pytest.approx(nats[kept].sum().item(), rel=1e-5)


def test_a_long_document_is_read_in_overlapping_windows(model: Transformer, corpus: Corpus) -> None:
    text = next(encode([next(d for d in corpus.documents("held_out") if d.source == "long")], model.tokenizer))
    window, total = 64, 0.0
    with torch.inference_mode():
        for start, first, stop in windows(len(text.ids), window, 16):
            logits = model(text.ids[None, start : stop - 1]).logits[0]
            nats = F.cross_entropy(logits, text.ids[start + 1 : stop], reduction="none")
            total += nats[first - start - 1 :][text.sizes[first:stop] > 0].sum().item()
    scored = score([text], model_scorer(model), window)[0]
    assert scored.nats == pytest.approx(total, rel=1e-5) and scored.bytes == int(text.sizes.sum())


def test_any_function_to_logits_can_be_scored(model: Transformer, corpus: Corpus) -> None:
    texts = list(encode(corpus.documents("held_out"), model.tokenizer))
    by_function = score(texts, logits_scorer(lambda ids: model(ids[None]).logits[0]), window=128)
    assert [s.nats for s in by_function] == pytest.approx([s.nats for s in score(texts, model_scorer(model), 128)], rel=1e-5)
    even = summary(score(texts, logits_scorer(lambda ids: torch.zeros(len(ids), 400)), window=128))["total"]
    assert even["nats_per_token"] == pytest.approx(math.log(400))
    assert even["bits_per_byte"] == pytest.approx(math.log2(400) * even["tokens"] / even["bytes"])


def test_bytes_are_those_of_the_text_and_control_tokens_count_for_none(tokenizer: Tokenizer) -> None:
    said = [{"role": "user", "content": "Grüße, 漢字"}, {"role": "assistant", "content": "the 🙂"}]
    plain, chat = encode([Document("a", "s", "Köln <|end|> 漢"), Document.chat("b", "s", said)], tokenizer)
    assert int(plain.sizes.sum()) == len("Köln <|end|> 漢".encode())
    assert int(chat.sizes.sum()) == sum(len(turn["content"].encode()) for turn in said)
    assert not chat.sizes[[int(i) in tokenizer.special_ids for i in chat.ids]].any()


def test_summary_adds_up() -> None:
    scored = [Scored("1", "a", 10, 40, 20.0), Scored("2", "b", 5, 10, 15.0), Scored("3", "a", 10, 50, 40.0)]
    result = summary(scored)
    assert result["total"]["bits_per_byte"] == pytest.approx(75 / math.log(2) / 100)
    assert result["sources"]["a"] | {"interval": None} == {
        "documents": 2, "tokens": 20, "bytes": 90, "nats_per_token": 3.0, "bits_per_byte": 60 / math.log(2) / 90, "interval": None,
    }  # fmt: skip
    assert result["sources"]["b"]["interval"] is None
    low, high = result["sources"]["a"]["interval"]
    assert low == pytest.approx(0.5 / math.log(2)) and high == pytest.approx(0.8 / math.log(2))


def test_a_split_is_measured_or_a_part_of_it(model: Transformer, corpus: Corpus) -> None:
    whole, part = perplexity(model, corpus, window=100), perplexity(model, corpus, window=100, limit=4)
    assert whole["total"]["documents"] == 14 and part["total"]["documents"] == 4
    assert whole["total"]["bytes"] == sum(row["bytes"] for row in whole["sources"].values())
    assert whole["selection"] == "sparse" and whole["window"] == 100
    dense = perplexity(model, corpus, window=100, selection="dense")["total"]["nats_per_token"]
    assert dense != whole["total"]["nats_per_token"]  # 16 keys are fewer than a long document has
    with pytest.raises(ConfigError, match="window: 1"):
        perplexity(model, corpus, window=1)
