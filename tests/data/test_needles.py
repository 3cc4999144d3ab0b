"""Needles: they are in the text once, at the asked length, and held-out ones are about other things than those of training."""

import itertools
import re

import numpy as np
import pytest
import torch

from fourfold.data.corpus import Corpus
from fourfold.data.haystack import Draw, Haystack
from fourfold.data.needles import WORDINGS, NeedleMaker, NeedleRows, needle_task
from fourfold.data.packing import tokenise
from fourfold.data.words import in_split, nouns
from fourfold.errors import DataError
from fourfold.text.tokenizer import Tokenizer

SPLITS = ("train", "held_out")


@pytest.fixture(scope="module")
def shipped() -> tuple[Corpus, Tokenizer]:
    corpus = Corpus.open("tiny-text")
    return corpus, Tokenizer.load(corpus.tokenizer_folder)


@pytest.fixture(scope="module")
def text(shipped: tuple[Corpus, Tokenizer]) -> np.ndarray:
    return tokenise(*shipped, "held_out")


def turns(row: list[int], tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """(role, what is said) of the turns of a document."""
    said = tokenizer.decode(row, skip_special=False)
    return re.findall(r"<\|(system|user|assistant)\|>(.*?)<\|end\|>", said, re.S)


@pytest.mark.parametrize("length", [256, 257, 511, 512, 513, 1024, 4095, 4096, 8192])
def test_a_task_has_its_length_and_every_needle_once(length: int, shipped, text: np.ndarray) -> None:
    tokenizer = shipped[1]
    for count, seed in itertools.product((1, 4, 7), range(2)):
        task = needle_task(tokenizer, text, length, count, seed)
        sizes = [len(task.context) + len(question) + len(answer) for question, answer in task.questions]
        assert len(sizes) == count and length - 25 <= min(sizes) <= max(sizes) == length
        context = tokenizer.decode(task.context)
        for question, answer in task.questions:
            asked, value = tokenizer.decode(question), tokenizer.decode(answer)
            assert context.count(value) == 1 and value not in asked
            key = re.search(r"the (\w+)\?$|Which code opens the (\w+)|does the (\w+) have", asked)
            about = next(word for word in key.groups() if word)
            (sentence,) = [s for s in re.findall(r"[A-Z][^.\n]*\.", context) if value in s]
            assert re.search(rf"\bthe {about}\b", sentence, re.I)
            turn = tokenizer.decode([*task.context, *question], skip_special=False)
            assert turn.startswith("<|bos|><|system|>") and turn.endswith(f"<|end|><|user|>{asked}<|end|><|assistant|>")


def test_a_task_is_a_function_of_its_seed(shipped, text: np.ndarray) -> None:
    tokenizer = shipped[1]
    assert needle_task(tokenizer, text, 600, 4, 1) == needle_task(tokenizer, text, 600, 4, 1)
    assert needle_task(tokenizer, text, 600, 4, 1) != needle_task(tokenizer, text, 600, 4, 2)
    with pytest.raises(DataError, match="^needles: 9 do not fit in 128 tokens; ask for fewer"):
        needle_task(tokenizer, text, 128, 9, 0)


def test_needles_stand_all_over_the_text(shipped, text: np.ndarray) -> None:
    tokenizer = shipped[1]
    places = []
    for seed in range(40):
        task = needle_task(tokenizer, text, 1024, 1, seed)
        context, value = tokenizer.decode(task.context), tokenizer.decode(task.questions[0][1])
        places.append(context.index(value) / len(context))
    assert min(places) < 0.1 and max(places) > 0.9 and 0.35 < float(np.mean(places)) < 0.65


def test_held_out_needles_are_about_other_things(shipped, text: np.ndarray) -> None:
    assert not set(nouns("train")) & set(nouns("held_out"))
    assert len(nouns("train")) > 250 and len(nouns("held_out")) > 60
    for split in SPLITS:
        maker = NeedleMaker(Haystack(text, shipped[1]), split)
        found = [needle for seed in range(40) for needle in maker.needles(Draw(str(seed)), 12)]
        assert {needle.kind for needle in found} == set(WORDINGS)
        for needle in found:
            assert needle.key in nouns(split) and in_split(needle.value, split)
            assert needle.value in (nouns(split) if needle.kind == "word" else needle.value) and needle.value in needle.said
            assert needle.kind == "word" or re.fullmatch(r"\d{4,5}", needle.value)
    assert len(maker.needles(Draw("many"), 16)) == 16


@pytest.mark.parametrize("length", [64, 127, 512, 513, 1024, 4096])
def test_rows_are_full_and_depend_on_their_number_alone(length: int, shipped) -> None:
    corpus, tokenizer = shipped
    rows = NeedleRows(corpus, tokenizer, length, "held_out", seed=3)
    tokens, documents = rows.take(list(range(8)))
    assert tokens.shape == documents.shape == (8, length + 1) and tokens.dtype == documents.dtype == torch.int64
    starts = tokens == tokenizer.special("bos")
    assert starts[:, 0].all() and torch.equal(documents[:, 1:] != documents[:, :-1], starts[:, 1:])
    assert not set(documents[3].tolist()) & set(documents[4].tolist())
    again, _ = NeedleRows(corpus, tokenizer, length, "held_out", seed=3).take([5, 2])
    assert torch.equal(again, tokens[[5, 2]])
    other, _ = NeedleRows(corpus, tokenizer, length, "held_out", seed=4).take([5, 2])
    assert not torch.equal(other, again)


def test_what_a_row_asks_can_be_read_in_it(shipped) -> None:
    corpus, tokenizer = shipped
    rows = NeedleRows(corpus, tokenizer, 2048, "held_out")
    bos = tokenizer.special("bos")
    kinds = {"needles": 0, "several": 0, "copied": 0, "continued": 0}
    for row in rows.take(list(range(40)))[0].tolist():
        starts = [i for i, token in enumerate(row) if token == bos] + [len(row)]
        for document in (row[a:b] for a, b in itertools.pairwise(starts)):
            (role, context), *said = turns(document, tokenizer)
            assert role == "system" and [r for r, _ in said] == ["user", "assistant"] * (len(said) // 2) and said
            for (_, asked), (_, told) in zip(said[::2], said[1::2], strict=True):
                if asked.endswith(("text above.", "word for word.")):
                    assert told == context
                    kinds["copied"] += 1
                elif asked.startswith(("What comes after", "How does the text", "Continue")):
                    assert asked.partition("\n")[2] + told in context
                    kinds["continued"] += 1
                else:
                    values = re.split(r", | and ", told)
                    assert all(context.count(value) == 1 for value in values)
                    kinds["several" if len(values) > 1 else "needles"] += 1
    assert min(kinds.values()) >= 5 and kinds["needles"] > 200


def test_the_haystack_is_plain_text(shipped, text: np.ndarray) -> None:
    tokenizer = shipped[1]
    haystack = Haystack(text, tokenizer)
    for seed in range(30):
        passage = haystack.passage(Draw(str(seed)), 700)
        assert len(passage) == 700 and not set(passage.tolist()) & tokenizer.special_ids


def test_text_shorter_than_a_row_is_read_again_and_chats_alone_are_refused(tokenizer: Tokenizer) -> None:
    bos, eos, user, end = (tokenizer.special(name) for name in ("bos", "eos", "user", "end"))
    short = np.array([bos, *tokenizer.encode("The cat sat on the mat. The dog ran off."), eos], np.uint16)
    assert len(Haystack(short, tokenizer).passage(Draw("a"), 500)) == 500
    chats = np.array([bos, user, *tokenizer.encode("the cat?"), end, eos] * 9, np.uint16)
    with pytest.raises(DataError, match="^needles: there are only chats to hide them in; choose"):
        Haystack(chats, tokenizer).passage(Draw("a"), 50)
    with pytest.raises(DataError, match="^needles: there is no text"):
        Haystack(chats[:0], tokenizer).passage(Draw("a"), 50)
