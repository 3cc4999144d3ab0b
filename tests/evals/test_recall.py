"""Facts from a file, asked in the chat format, judged beside the most frequent answer."""

import json
from pathlib import Path

import pytest

from fourfold.data.corpus import Corpus
from fourfold.errors import DataError
from fourfold.evals.recall import FILE, ask, figures, majority_answers, read_facts, recall
from fourfold.model.transformer import Transformer
from fourfold.text.chat import render


def test_a_model_that_knows_everything_is_told_from_one_that_says_the_usual(corpus: Corpus) -> None:
    facts = read_facts(corpus.folder / FILE)
    majority = majority_answers(facts)
    assert majority == {"capital": "lima", "language": "spanish"}
    knows = figures(facts, [f"It is {fact.answer}." for fact in facts], majority)
    usual = figures(facts, [majority[fact.relation] for fact in facts], majority)
    for group, count in (("read", 6), ("never_read", 2)):
        total = knows[group]["total"]
        assert total["stated"]["right"] == total["stated"]["total"] == count and total["exact"]["right"] == 0
        assert usual[group]["total"]["exact"] == usual[group]["total"]["stated"] == usual[group]["total"]["majority"]
    assert usual["read"]["total"]["majority"]["right"] == 3 and usual["never_read"]["total"]["majority"]["right"] == 1
    assert knows["read"]["relations"]["language"]["majority"]["right"] == 2
    assert knows["never_read"]["relations"].keys() == {"language"}


def test_aliases_count_and_unread_rows_do_not_make_the_usual_answer(corpus: Corpus) -> None:
    facts = [fact for fact in read_facts(corpus.folder / FILE) if fact.entity in ("Chad", "Mexico")]
    found = figures(facts, ["Ndjamena", "Spanish"], majority_answers(facts))
    assert found["read"]["total"]["exact"]["right"] == 1
    assert found["never_read"]["total"]["stated"]["right"] == 1 and found["never_read"]["total"]["majority"]["right"] == 0


def test_questions_go_through_the_chat_format(model: Transformer, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    facts, tokenizer = read_facts(corpus.folder / FILE), model.tokenizer
    asked: dict[tuple[int, ...], str] = {}
    for fact in facts:
        asked[tuple(render([{"role": "user", "content": fact.question}], tokenizer))] = fact.answer

    def oracle(_model: Transformer, prompts: list[list[int]], ends: set[int], max_tokens: int) -> list[list[int]]:
        assert {tokenizer.special("end"), tokenizer.encode("\n")[0]} <= set(ends) and max_tokens >= 8
        return [tokenizer.encode(asked[tuple(prompt)]) for prompt in prompts]

    monkeypatch.setattr("fourfold.evals.recall.replies", oracle)
    monkeypatch.setattr("fourfold.evals.recall.AT_ONCE", 3)
    assert ask(model, facts) == [fact.answer for fact in facts]
    result = recall(model, corpus)
    assert result["read"]["total"]["exact"]["right"] == 6 == result["without_engram"]["read"]["total"]["exact"]["right"]


def test_a_random_model_is_measured_with_and_without_engram(model: Transformer, corpus: Corpus) -> None:
    facts = read_facts(corpus.folder / FILE)
    result = recall(model, corpus, limit=5)
    assert result["questions"] == 5 and result["without_engram"].keys() == {"read", "never_read"}
    assert sum(result[group]["total"]["stated"]["total"] for group in ("read", "never_read")) == 5
    first = ask(model, facts[:4])
    assert any(first) and all("\n" not in reply for reply in first)
    assert ask(model, facts[3::-1]) == first[::-1]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"read": "yes"}, "empty or of another type"),
        ({"answer": ""}, "empty or of another type"),
        ({"aliases": [3]}, "empty or of another type"),
        ({"question": None}, "empty or of another type"),
    ],
)
def test_a_row_that_is_no_fact_is_named(change: dict, said: str, corpus: Corpus, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in (corpus.folder / FILE).read_text().splitlines()]
    path = tmp_path / FILE
    path.write_text("\n".join(json.dumps(row) for row in [rows[0], rows[1] | change]))
    with pytest.raises(DataError, match=f"{FILE}:2: .*{said}"):
        read_facts(path)
    path.write_text('{"id": "x"}')
    with pytest.raises(DataError, match=f"{FILE}:1: is not a fact"):
        read_facts(path)
    path.unlink()
    with pytest.raises(DataError, match="is missing; choose a corpus"):
        read_facts(path)
