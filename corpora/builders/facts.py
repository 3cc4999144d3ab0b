"""Facts as chats: every fact in many wordings, alone or beside others, with and without a system turn."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from builders.common import Document, article, capital, pick
from builders.relations import RELATIONS, Relation
from builders.small_talk import SYSTEM
from fourfold.data.documents import unit

BRIEF = ("Answer with a word or two.", "Answer in as few words as you can.", "Give only the answer.")


@dataclass(frozen=True)
class Fact:
    """`entity` as it stands in a sentence; `about` groups facts that one chat may hold; `answer` is the short form, `full` the
    long one; `recall`: fit for the recall test (the entity does not give the answer away)."""

    relation: str
    entity: str
    answer: str
    about: str
    held_out: bool
    full: str = ""
    aliases: tuple[str, ...] = ()
    recall: bool = True

    @property
    def key(self) -> str:
        return f"{self.relation}/{self.about}"

    @property
    def how(self) -> Relation:
        return RELATIONS[self.relation]

    def fill(self, wording: str) -> str:
        e, a = self.entity, self.answer
        return wording.format(e=e, E=capital(e), a=a, full=self.full or a, an=article(a))

    def unseen(self) -> str:
        """The question of the recall test."""
        return self.fill(pick(list(self.how.unseen), "unseen:" + self.key))

    def told(self, which: str) -> str:
        return capital(self.fill(pick(list(self.how.says), which)))


def documents(facts: list[Fact]) -> list[Document]:
    """Chats over all facts, each `repeats` times, those of the held-out entities apart; and the unseen wordings, held out."""
    found: list[Document] = []
    for held_out in (False, True):
        found += _chats([fact for fact in facts if fact.held_out == held_out], held_out)
    for fact in facts:
        if fact.recall:
            turns = [(fact.unseen(), fact.told("unseen-answer:" + fact.key))]
            found.append(dialogue(f"recall/{fact.key}", "unseen wordings", True, turns))
    return found


def _chats(facts: list[Fact], held_out: bool) -> Iterator[Document]:
    """Rounds over the facts in an order of their own; one to three questions a chat."""
    most = max((fact.how.repeats for fact in facts), default=0)
    kin = defaultdict(list)
    for fact in facts:
        kin[fact.about].append(fact)
    for repeat in range(most if not held_out else min(most, 4)):
        waiting = sorted((f for f in facts if f.how.repeats > repeat), key=lambda f: unit(f"order:{repeat}:{f.key}"))
        taken: set[str] = set()
        by_relation = defaultdict(list)
        for fact in waiting:
            by_relation[fact.relation].append(fact)
        for fact in waiting:
            if fact.key in taken:
                continue
            key = f"{fact.key}/{repeat}"
            size = pick([1, 1, 1, 1, 2, 2, 3], "size:" + key)
            same = unit("kin:" + key) < 0.5
            rest = kin[fact.about] if same else by_relation[fact.relation]
            free = [f for f in rest if f.key not in taken and f.key != fact.key and f.how.repeats > repeat]
            group = [fact, *free[: size - 1]]
            taken.update(f.key for f in group)
            yield _chat(key, group, repeat, held_out)


def _chat(key: str, group: list[Fact], repeat: int, held_out: bool) -> Document:
    first, *others = group
    brief = unit("brief:" + key) < 0.08
    turns = [(_ask(first, repeat), _answer(first, key, brief))]
    for fact in others:
        turns.append((_ask_on(fact, first, repeat), _answer(fact, key, brief)))
    system = pick(list(BRIEF), key) if brief else SYSTEM if unit("system:" + key) < 0.04 else None
    return dialogue("facts/" + key, "facts", held_out, turns, system)


def _ask(fact: Fact, repeat: int) -> str:
    """A wording that changes from one repeat to the next, and starts elsewhere for every fact."""
    asked = fact.how.asked
    return fact.fill(asked[(repeat + int(unit("ask:" + fact.key) * len(asked))) % len(asked)])


def _ask_on(fact: Fact, first: Fact, repeat: int) -> str:
    """A question that leans on the one before it, or a whole one."""
    key = f"on:{fact.key}:{repeat}"
    if unit(key) < 0.4:
        return _ask(fact, repeat)
    if fact.about == first.about and fact.how.follow:
        return pick(list(fact.how.follow), key)
    if fact.relation == first.relation:
        return pick(["And {e}?", "What about {e}?"], key).format(e=fact.entity)
    return _ask(fact, repeat)


def _answer(fact: Fact, key: str, brief: bool) -> str:
    return capital(fact.answer) + "." if brief else fact.told("say:" + key)


def dialogue(id: str, source: str, held_out: bool, turns: list[tuple[str, str]], system: str | None = None) -> Document:
    messages = [{"role": "system", "content": system}] if system else []
    for asked, told in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": told}]
    return Document(id, source, held_out, messages=messages)
