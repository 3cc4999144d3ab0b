"""Sums: asked with thinking on, judged by the final number after it."""

import pytest

from fourfold.data.corpus import Corpus
from fourfold.data.documents import Document
from fourfold.errors import DataError
from fourfold.evals.arithmetic import arithmetic, ask, kind, wanted
from fourfold.model.transformer import Transformer
from tests.evals.small import chat


def test_only_the_number_after_the_thinking_counts(model: Transformer, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = model.tokenizer
    think, thought = tokenizer.special("think"), tokenizer.special("/think")
    said = {"4 + 5": ("4 + 5 = 1", "It is 9."), "What is 8 - 2?": ("6", "7"), "1 + 2 + 3": ("6", ""), "Two?": ("2", None)}

    def oracle(_model, prompts, ends, max_tokens) -> list[list[int]]:
        found = []
        for prompt in prompts:
            assert prompt[-1] == think
            thoughts, told = next(value for key, value in said.items() if key in tokenizer.decode(prompt))
            found.append(tokenizer.encode(thoughts) + ([] if told is None else [thought, *tokenizer.encode(told)]))
        return found

    monkeypatch.setattr("fourfold.evals.arithmetic.replies", oracle)
    result = arithmetic(model, corpus)
    assert (result["total"]["right"], result["total"]["total"], result["unanswered"]) == (1, 4, 2)
    assert {name: row["right"] for name, row in result["kinds"].items()} == {"sums +": 1, "sums -": 0, "chains": 0, "problems": 0}
    assert arithmetic(model, corpus, limit=2)["total"]["total"] == 2


def test_a_random_model_gives_an_answer_or_none(model: Transformer, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fourfold.evals.arithmetic.LONGEST", 12)
    chats = [document for document in corpus.documents("held_out") if document.messages]
    assert all(number is None or number.lstrip("-").replace(".", "").isdigit() for number in ask(model, chats))


@pytest.mark.parametrize(
    ("id", "expected"),
    [("sums/38+22", "sums +"), ("sums/50*6", "sums *"), ("chains/72", "chains"), ("problems/93/6", "problems"), ("sums/x", "sums")],
)
def test_kinds(id: str, expected: str) -> None:
    assert kind(chat(id, "sums", "?", "1")) == expected


def test_what_has_no_number_is_not_asked(model: Transformer, corpus: Corpus) -> None:
    assert wanted(chat("a", "sums", "?", "It is 1,200.")) == "1200" and wanted(chat("a", "sums", "?", "none")) is None
    assert wanted(Document.chat("a", "sums", [{"role": "user", "content": "3"}])) is None
    other = Corpus(corpus.folder, corpus.about)
    other.documents = lambda split: iter([chat("talk/1", "talk", "?", "5")])
    with pytest.raises(DataError, match="no chats of sums or problems"):
        arithmetic(model, other)
