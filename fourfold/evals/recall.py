"""What a model remembers of its training text: questions about facts, in wordings it was never trained on.

The rows of a corpus's `recall.jsonl` are facts that were read (`read` true) and facts of entities that never were. What counts is
the margin over answering every question of a relation with its most frequent answer, and how much of it Engram's tables carry.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fourfold.data.corpus import Corpus
from fourfold.data.progress import progress
from fourfold.engine.batches import replies
from fourfold.engine.generate import end_tokens
from fourfold.errors import DataError
from fourfold.evals.ablation import without_engram
from fourfold.evals.answers import answers, normalise, states
from fourfold.evals.statistics import share, subset
from fourfold.model.transformer import Transformer
from fourfold.text.chat import render
from fourfold.text.tokenizer import Tokenizer

FILE = "recall.jsonl"
AT_ONCE = 32  # questions in one forward
LONGEST = 48  # tokens of a reply; only its first line is judged


@dataclass(frozen=True)
class Fact:
    """A question with the answers that count as right; `read`: its entity is part of the training text."""

    id: str
    relation: str
    entity: str
    question: str
    answer: str
    aliases: tuple[str, ...]
    read: bool

    @property
    def accepted(self) -> tuple[str, ...]:
        return (self.answer, *self.aliases)


def recall(model: Transformer, corpus: Corpus, limit: int | None = None) -> dict:
    """`figures` of a corpus's facts (or of `limit` of them), with Engram as it is and with its rows zeroed."""
    facts = read_facts(corpus.folder / FILE)
    asked = subset(facts, limit, lambda fact: fact.id)
    majority = majority_answers(facts)
    result = {"corpus": corpus.name, "questions": len(asked), **figures(asked, ask(model, asked, "recall"), majority)}
    if model.config.memory is not None:
        with without_engram(model):
            result["without_engram"] = figures(asked, ask(model, asked, "recall without Engram"), majority)
    return result


def read_facts(path: Path) -> list[Fact]:
    """The facts of a recall.jsonl. Raises DataError naming the file and line."""
    if not path.is_file():
        raise DataError(f"{path}: is missing; choose a corpus that has recall questions")
    facts = []
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            texts = {name: row[name] for name in ("id", "relation", "entity", "question", "answer")}
            aliases, read = tuple(row["aliases"]), row["read"]
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}:{number}: is not a fact ({error!r}); build the corpus again") from error
        if not all(isinstance(text, str) and text for text in (*texts.values(), *aliases)) or not isinstance(read, bool):
            raise DataError(f"{path}:{number}: a field of the fact is empty or of another type; build the corpus again")
        facts.append(Fact(**texts, aliases=aliases, read=read))
    return facts


def ask(model: Transformer, facts: Sequence[Fact], label: str = "recall") -> list[str]:
    """The greedy replies, in the order of the facts."""
    tokenizer: Tokenizer = model.tokenizer
    prompts = [render([{"role": "user", "content": fact.question}], tokenizer) for fact in facts]
    ends = end_tokens(model, tokenizer) | {i for i in range(tokenizer.vocab_size) if b"\n" in tokenizer.bytes_of(i)}
    order = sorted(range(len(facts)), key=lambda i: len(prompts[i]))
    said = [""] * len(facts)
    groups = [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]
    for group in progress(groups, label, len(order), len):
        for i, ids in zip(group, replies(model, [prompts[i] for i in group], ends, LONGEST), strict=True):
            said[i] = tokenizer.decode(ids)
    return said


def majority_answers(facts: Sequence[Fact]) -> dict[str, str]:
    """relation -> the answer given most often among its read facts (the first in alphabet among equals)."""
    counts: dict[str, Counter[str]] = {}
    for fact in facts:
        if fact.read:
            counts.setdefault(fact.relation, Counter())[normalise(fact.answer)] += 1
    return {relation: min(own, key=lambda answer: (-own[answer], answer)) for relation, own in counts.items()}


def figures(facts: Sequence[Fact], said: Sequence[str], majority: dict[str, str]) -> dict:
    """`read` and `never_read`, each with `total` and `relations`: what `_judge` counts."""
    groups: dict[str, dict] = {}
    for name, read in (("read", True), ("never_read", False)):
        chosen = [(fact, reply) for fact, reply in zip(facts, said, strict=True) if fact.read is read]
        relations = sorted({fact.relation for fact, _ in chosen})
        parts = {relation: [pair for pair in chosen if pair[0].relation == relation] for relation in relations}
        groups[name] = {"total": _judge(chosen, majority)}
        groups[name]["relations"] = {relation: _judge(own, majority) for relation, own in parts.items()}
    return groups


def _judge(pairs: Sequence[tuple[Fact, str]], majority: dict[str, str]) -> dict:
    """`stated`: the answer stands in the first line of the reply; `exact`: it is the whole of the first line or sentence;
    `majority`: the relation's most frequent answer would be right.
    """
    stated = sum(states(reply, fact.accepted, fact.entity) for fact, reply in pairs)
    exact = sum(answers(reply, fact.accepted) for fact, reply in pairs)
    usual = sum(answers(majority.get(fact.relation, ""), fact.accepted) for fact, _ in pairs)
    judged = {"stated": stated, "exact": exact, "majority": usual}
    return {name: share(right, len(pairs)) for name, right in judged.items()}
