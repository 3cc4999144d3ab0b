"""tiny-chat: what is held out is nowhere in what is trained on, facts of the recall test are, and every sum adds up."""

import json
import re
from collections import Counter, defaultdict
from fractions import Fraction

import pytest

from fourfold.data.corpus import Corpus
from fourfold.data.documents import Document
from fourfold.text.tokenizer import Tokenizer

NUMBER = r"\d+(?:\.\d+)?"


@pytest.fixture(scope="module")
def chats() -> dict[str, list[Document]]:
    corpus = Corpus.open("tiny-chat")
    return {split: list(corpus.documents(split)) for split in corpus.splits}


@pytest.fixture(scope="module")
def rows() -> list[dict]:
    lines = (Corpus.open("tiny-chat").folder / "recall.jsonl").read_text("utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def trained(chats: dict[str, list[Document]]) -> list[tuple[str, str]]:
    """(question, answer) of every pair of turns over facts that is trained on."""
    pairs: list[tuple[str, str]] = []
    for document in chats["train"]:
        if document.source == "facts":
            said = [m["content"] for m in document.messages if m["role"] != "system"]
            pairs += zip(said[::2], said[1::2], strict=True)
    return pairs


def by_source(documents: list[Document], source: str) -> list[Document]:
    return [document for document in documents if document.source == source]


def test_splits_share_no_chat_no_template_and_no_entity(chats: dict[str, list[Document]]) -> None:
    seen = {split: {json.dumps(d.messages) for d in documents} for split, documents in chats.items()}
    assert set(chats) == {"train", "held_out"} and not seen["train"] & seen["held_out"]
    parts = {"problems": 1, "sums": 1, "words": 1, "facts": 2, "countries": 1}  # the part of an id that says what it is about
    for source, place in parts.items():
        about = {split: {d.id.split("/")[place] for d in by_source(chats[split], source)} for split in chats}
        assert about["train"] and about["held_out"] and not about["train"] & about["held_out"], source
    assert len({d.id.split("/")[1] for d in by_source(chats["held_out"], "problems")}) == 20
    asked = {
        split: {frozenset(re.findall(r"\d+|[+*-]", d.id.split("/")[1])) for d in by_source(chats[split], "sums")} for split in chats
    }
    long = {split: {s for s in sums if len(s) > 2 or max(map(len, s)) > 1} for split, sums in asked.items()}
    assert not {s for s in long["train"] & long["held_out"] if s & {"+", "*"}}  # neither is the other way round


def test_what_tiny_text_holds_out_is_held_out(chats: dict[str, list[Document]], rows: list[dict]) -> None:
    documents = {split: list(Corpus.open("tiny-text").documents(split)) for split in ("train", "held_out")}
    countries = {d.id.split("/")[1] for d in by_source(documents["held_out"], "factbook")}
    assert countries
    for document in chats["train"]:
        where = re.findall(r"country-(\w+)|^countries/(\w+)", document.id)
        assert not {code for pair in where for code in pair} & countries
    read = "\n".join(d.text.lower() for d in [*documents["train"], *chats["train"]])
    unread = [re.sub(r"^an? ", "", row["entity"]).lower() for row in rows if not row["read"]]
    assert len(unread) >= 60 and not [name for name in unread if name in read]


def test_the_recall_test_asks_in_wordings_that_are_never_trained(rows: list[dict], trained: list[tuple[str, str]]) -> None:
    quoted = [f'"{row["entity"]}"' if row["relation"] == "opposite" else row["entity"] for row in rows]
    wordings = {tuple(row["question"].split(entity)) for row, entity in zip(rows, quoted, strict=True)}
    relations = {row["relation"] for row in rows}
    assert all(len(wording) == 2 for wording in wordings) and len(wordings) >= 2 * len(relations)
    for start, end in wordings:
        assert not [asked for asked, _ in trained if asked.startswith(start or "\0") and asked.endswith(end)]


def test_facts_of_the_recall_test_are_trained_when_they_say_so(rows: list[dict], trained: list[tuple[str, str]]) -> None:
    assert len({row["id"] for row in rows}) == len(rows)
    assert sum(row["read"] for row in rows) >= 200 and sum(not row["read"] for row in rows) >= 60
    told = defaultdict(list)
    for asked, answer in trained:
        for word in set(re.findall(r"[\w'-]+", asked)):
            told[word].append((asked, answer))
    for row in rows:
        rarest = min((told[word] for word in re.findall(r"[\w'-]+", row["entity"])), key=len)
        answers = [a for asked, a in rarest if row["entity"] in asked and re.search(rf"\b{re.escape(row['answer'])}", a, re.I)]
        assert len(answers) >= 6 if row["read"] else not answers, row


def test_questions_of_the_recall_test_do_not_hold_their_answers(rows: list[dict]) -> None:
    for row in rows:
        assert set(row) == {"id", "relation", "entity", "question", "answer", "aliases", "read"}
        assert 1 <= len(row["answer"].split()) <= 4 and row["entity"] in row["question"]
        assert not re.search(rf"\b{re.escape(row['answer'])}\b", row["question"], re.I), row
    for relation in {row["relation"] for row in rows}:
        answers = Counter(row["answer"] for row in rows if row["relation"] == relation and row["read"])
        assert answers.most_common(1)[0][1] <= 0.45 * answers.total()  # one answer does not do for most


def test_every_sum_adds_up(chats: dict[str, list[Document]]) -> None:
    tokenizer = Tokenizer.load(Corpus.open("tiny-text").tokenizer_folder)
    for document in [d for documents in chats.values() for d in documents if d.source in ("sums", "problems")]:
        question, reply = document.messages
        assert re.fullmatch(r"\d+", reply["content"])
        thoughts = reply.get("reasoning_content", "")
        assert len(tokenizer.encode(thoughts)) <= 100
        for line in thoughts.splitlines():
            left, right = re.sub(r"^borrow 1: |, write \d, carry 1$", "", line).split(" = ")
            assert value(left) == Fraction(right), document.id
        asked = re.fullmatch(r"\D*?(\d+(?: [+*-] \d+)+)\D*", question["content"])
        assert not asked or value(asked.group(1)) == int(reply["content"])
        if document.source == "problems":
            assert thoughts.endswith(f"= {reply['content']}")


def value(expression: str) -> Fraction:
    assert re.fullmatch(rf"(?:{NUMBER}|[-+*/() ])+", expression), expression
    return eval(re.sub(NUMBER, lambda m: f"Fraction('{m.group()}')", expression))


def test_tiny_chat_says_where_it_came_from_and_is_counted_in_tiny_texts_tokens(chats: dict[str, list[Document]]) -> None:
    corpus = Corpus.open("tiny-chat")
    licences = (corpus.folder.parent / "LICENSES.md").read_text("utf-8")
    pins = corpus.about["packages"]
    assert set(pins) == {"wordnet", "factbook", "recipes", "chatterbot", "problems"}
    assert all(f"`{pin['package']}` {pin['version']}" in licences for pin in pins.values())
    sources = corpus.about["sources"]
    assert all(source["licence"] and f"`{name}`" in licences for name, source in sources.items())
    assert corpus.about["tokenizer_sha256"] == Corpus.open("tiny-text").about["tokenizer_sha256"]
    trained = {name: source["splits"].get("train", {"tokens": 0})["tokens"] for name, source in sources.items()}
    assert 0.25 < (trained["sums"] + trained["problems"]) / sum(trained.values()) < 0.3
    assert sum(trained.values()) == corpus.about["splits"]["train"]["tokens"] > 1_500_000
    assert any(m["role"] == "system" for d in chats["train"] for m in d.messages)
    assert sum(len(d.messages) > 3 for d in chats["train"]) > 2000  # chats of several turns
