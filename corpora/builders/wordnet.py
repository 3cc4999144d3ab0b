"""WordNet 3.0 as sentences: entries that lie near one another in the tree of meanings share a document.

A concept group (a run of the tree walked in order) is one document, so a gloss is never in both splits; its questions
and answers follow the split of their group.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from builders.common import Document, article, capital, chat, is_held_out, listing, pick, prose, sentence
from fourfold.data.documents import unit

GROUP_CHARACTERS = 2200  # about 500 tokens a document
COUNTED = {"05", "06", "18"}  # animal, artifact, person: these nouns take an article
PLANT = "20"
TAXA = {"05", "08", "14", "20"}  # animal, body, group, plant
UNWANTED = re.compile(
    r"slur|disparag|offensive|obscene|vulgar|derogat|sexual|ethnic|contemptuous|copulat|genital|rape\b|prostitut", re.I
)
DETERMINED = re.compile(
    r"(an?|the|any|one|some|all|either|each|something|someone|anything|what|that|those|this|of|in|with)\b", re.I
)
CHATS = 15000


@dataclass
class Synset:
    key: str  # part of speech and offset
    kind: str  # n v a r
    lexfile: str
    words: list[str]
    gloss: str
    examples: list[str]
    parents: list[str] = field(default_factory=list)
    instance_of: list[str] = field(default_factory=list)
    children: list[str] = field(default_factory=list)
    opposites: list[str] = field(default_factory=list)

    @property
    def is_person(self) -> bool:
        return self.lexfile == "18" and bool(self.instance_of)

    @property
    def name(self) -> str:
        """The first word; of a person the full name."""
        first = self.words[0]
        return next((w for w in self.words if w.endswith(f" {first}")), first) if self.is_person else first

    @property
    def verb(self) -> str:
        """ "was" for people whose gloss gives their dates."""
        return "was" if self.is_person and re.search(r"\d{3,4}-\d{3,4}", self.gloss) else "is"

    @property
    def is_taxon(self) -> bool:
        """A genus, family or order: thousands of Latin names that teach little English."""
        ranks = ("genus", "family", "order", "class", "phylum")
        return self.lexfile in TAXA and any(w.split()[0] in ranks or w.endswith(("idae", "aceae")) for w in self.words)

    def others(self) -> list[str]:
        """Other words for it, without scientific names."""
        found = [w for w in self.words if w.lower() != self.name.lower()]
        return [] if self.is_person else [w for w in found if self.lexfile not in TAXA or w.islower()]

    def subject(self, word: str = "") -> str:
        """The (first) word as the subject of a sentence, with an article where English wants one."""
        word = word or self.name
        plural = word.endswith("s") and not word.endswith(("ss", "us", "is"))
        if word[:1].isupper() or word[:1].isdigit() or plural or self.lexfile not in COUNTED | {PLANT}:
            return word
        return f"the {word}" if self.lexfile == PLANT else f"{article(word)} {word}"

    def definition(self) -> str:
        """The gloss as what follows "is": with an article for counted nouns whose gloss has none."""
        counted = self.is_person or (self.kind == "n" and self.subject() != self.name)
        bare = DETERMINED.match(self.gloss) or self.gloss.split()[0].endswith("s")
        return f"{article(self.gloss)} {self.gloss}" if counted and not bare else self.gloss


def load(folder: Path) -> dict[str, Synset]:
    """All synsets by key, in file order."""
    synsets: dict[str, Synset] = {}
    for part, letter in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        for line in (folder / f"usr/share/wordnet/data.{part}").read_text("utf-8").splitlines():
            if line[:1].isdigit():
                synset = _parse(line, letter)
                synsets[synset.key] = synset
    for synset in synsets.values():
        for parent in synset.parents + synset.instance_of:
            synsets[parent].children.append(synset.key)
    return synsets


def _parse(line: str, letter: str) -> Synset:
    head, _, gloss = line.partition(" | ")
    fields = head.split()
    count = int(fields[3], 16)
    words = [re.sub(r"\((a|p|ip)\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count)]
    examples = [prose(e) for e in re.findall(r'"([^"]+)"', gloss) if len(e) > 8]
    definition = prose(re.split(r'[;:,]?\s*"', gloss)[0]).strip(" ;:,")
    synset = Synset(letter + fields[0], letter, fields[1], words, definition, examples)
    pointers = fields[5 + 2 * count :]
    for i in range(int(fields[4 + 2 * count])):
        symbol, offset, kind = pointers[4 * i], pointers[4 * i + 1], pointers[4 * i + 2]
        target = {"s": "a"}.get(kind, kind) + offset
        for sign, place in (("@", synset.parents), ("@i", synset.instance_of), ("!", synset.opposites)):
            if symbol == sign:
                place.append(target)
    return synset


def _walk(synsets: dict[str, Synset]) -> list[Synset]:
    """Nouns and verbs in pre-order of their tree (children by name), then adjectives by cluster and adverbs by name."""
    seen: set[str] = set()
    order: list[Synset] = []
    for kind in "nv":
        stack = [s.key for s in reversed(synsets.values()) if s.kind == kind and not s.parents and not s.instance_of]
        while stack:
            key = stack.pop()
            if key not in seen:
                seen.add(key)
                order.append(synsets[key])
                stack += sorted(synsets[key].children, key=lambda k: (synsets[k].name.lower(), k), reverse=True)
    order += [s for s in synsets.values() if s.kind == "a"]
    return order + sorted((s for s in synsets.values() if s.kind == "r"), key=lambda s: (s.name.lower(), s.key))


def entry(synset: Synset, synsets: dict[str, Synset]) -> str:
    """One synset as one to four sentences, in one of a few forms chosen by its key."""
    others = synset.others()[:3]
    form = pick([0, 1, 2], "form:" + synset.key)
    plain = not synset.gloss.startswith("(")
    also = f" ({listing(others, 'or')})" if others else ""
    if synset.kind == "n" and form and plain:
        parts = [sentence(f"{synset.subject()} {synset.verb} {synset.definition()}")]
    elif synset.kind == "v" and form and plain:
        parts = [sentence(f"to {synset.name} is to {synset.gloss}")]
    elif synset.kind == "a" and form == 2 and plain:
        parts = [sentence(f"{synset.name} means {synset.gloss}")]
    else:
        parts = [sentence(f"{synset.name}{also}: {synset.gloss}")]
        others = []
    if others:
        parts.append(sentence(f"Another word for it is {listing(others, 'or')}"))
    parts += _relations(synset, synsets)
    if synset.examples:
        lead = pick(["For example: ", "As in: ", "One might say: "], "lead:" + synset.key)
        parts.append(lead + " ".join(f'"{e}"' for e in synset.examples[:3]))
    return " ".join(parts)


def _relations(synset: Synset, synsets: dict[str, Synset]) -> list[str]:
    found = []
    if synset.kind == "n" and synset.parents:
        parent = synsets[synset.parents[0]].name
        if parent not in synset.gloss:
            found.append(sentence(f"{synset.subject()} is a kind of {parent}"))
    if synset.instance_of:
        parent = synsets[synset.instance_of[0]].name
        if parent not in synset.gloss:
            found.append(sentence(f"{synset.name} {synset.verb} {article(parent)} {parent}"))
    if synset.kind == "v" and synset.parents:
        found.append(sentence(f"it is one way to {synsets[synset.parents[0]].name}"))
    if synset.opposites:
        found.append(sentence(f"the opposite of {synset.name} is {synsets[synset.opposites[0]].name}"))
    return found


def build(folder: Path) -> list[Document]:
    """The documents of WordNet and the chats over them."""
    synsets = load(folder)
    documents, split = _documents(synsets)
    return documents + _chats(folder, synsets, split)


def splits(synsets: dict[str, Synset]) -> dict[str, bool]:
    """Whether a synset is held out, of all that are in the corpus."""
    return _documents(synsets)[1]


def _documents(synsets: dict[str, Synset]) -> tuple[list[Document], dict[str, bool]]:
    wanted = [
        s for s in _walk(synsets) if s.gloss and not s.is_taxon and not UNWANTED.search(s.gloss + " ".join(s.words + s.examples))
    ]
    groups: list[list[tuple[Synset, str]]] = [[]]
    size = 0
    for synset in wanted:
        text = entry(synset, synsets)
        if size + len(text) > GROUP_CHARACTERS or (groups[-1] and groups[-1][-1][0].kind != synset.kind):
            groups.append([])
            size = 0
        groups[-1].append((synset, text))
        size += len(text)
    train_glosses = {s.gloss for g in groups if not is_held_out(g[0][0].key) for s, _ in g}
    documents: list[Document] = []
    split: dict[str, bool] = {}
    for group in groups:
        held_out = is_held_out(group[0][0].key)
        rows = [(s, t) for s, t in group if not (held_out and s.gloss in train_glosses)]
        split.update({s.key: held_out for s, _ in rows})
        if rows:
            text = pick(["\n", "\n\n"], group[0][0].key).join(t for _, t in rows)
            documents.append(Document(f"wordnet/{group[0][0].key}", "wordnet", held_out, text))
    return documents, split


def common_words(folder: Path) -> list[tuple[str, str, str]]:
    """(word, kind, key of its first sense), the most used words first (by WordNet's own counts)."""
    counts: dict[tuple[str, str], int] = {}
    for line in (folder / "usr/share/wordnet/cntlist.rev").read_text("utf-8").splitlines():
        sense, _, count = line.split()
        lemma, _, rest = sense.partition("%")
        kind = {"1": "n", "2": "v", "3": "a", "4": "r", "5": "a"}[rest[0]]
        counts[lemma, kind] = counts.get((lemma, kind), 0) + int(count)
    found = []
    for part, kind in (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r")):
        for line in (folder / f"usr/share/wordnet/index.{part}").read_text("utf-8").splitlines():
            if line[:1].isalpha():
                fields = line.split()
                rank = counts.get((fields[0], kind), 0)
                found.append((-rank, unit(line), fields[0].replace("_", " "), kind, kind + fields[6 + int(fields[3])]))
    return [row[2:] for row in sorted(found)]


def _chats(folder: Path, synsets: dict[str, Synset], split: dict[str, bool]) -> list[Document]:
    """One to three questions a chat; all of one chat come from one split."""
    waiting: dict[bool, list[str]] = {False: [], True: []}
    asked: set[str] = set()
    documents: list[Document] = []
    for word, _, key in common_words(folder):
        if key not in split or key in asked or len(documents) >= CHATS or synsets[key].gloss.startswith("("):
            continue
        asked.add(key)
        held_out = split[key]
        turns = waiting[held_out]
        turns += question(word, synsets[key], synsets, split)
        if len(turns) >= 2 * pick([1, 1, 2, 3], "turns:" + key):
            documents.append(chat(f"chat/wordnet/{key}", held_out, *turns))
            waiting[held_out] = []
    return documents


def question(word: str, synset: Synset, synsets: dict[str, Synset], split: dict[str, bool]) -> list[str]:
    """A question about one word and its answer; now and then a follow-up."""
    name = next((w for w in synset.words if w.lower() == word), synset.name)
    subject, which = synset.subject(name), "ask:" + synset.key
    example = f' For example: "{synset.examples[0]}"' if synset.examples else ""
    if synset.kind == "n":
        thing = f"{article(name)} {name}" if subject.startswith("the ") else subject
        name = synset.name if synset.is_person else name
        subject = name if synset.is_person else subject
        forms = (
            [f"Who {synset.verb} {name}?", f"Tell me who {name} {synset.verb}."]
            if synset.is_person
            else [
                f"What is {thing}?",
                f"what is {thing}",
                f"What does {name} mean?",
                f"Can you tell me what {thing} is?",
                f"Define {name}.",
            ]
        )
        answer = sentence(f"{subject} {synset.verb} {synset.definition()}")
        if synset.parents and synsets[synset.parents[0]].name not in synset.gloss:
            answer += f" It is a kind of {synsets[synset.parents[0]].name}."
    elif synset.kind == "v":
        forms = [f'What does "to {name}" mean?', f"What does it mean to {name}?", f"what does {name} mean"]
        answer = sentence(f"to {name} means to {synset.gloss}") + example
    else:
        forms = [f'What does "{name}" mean?', f"what does {name} mean", f"What is the meaning of {name}?"]
        answer = sentence(f'"{name}" means {synset.gloss}') + example
    turns = [pick(forms, which), capital(answer)]
    kin = [synsets[k].name for k in synset.children if split.get(k) == split[synset.key]]
    if synset.kind == "n" and len(kin) >= 3 and unit("kin:" + synset.key) < 0.4:
        turns += [f"What kinds of {name} are there?", sentence(f"some kinds of {name} are {listing(kin[:4])}")]
    elif synset.opposites and unit("opp:" + synset.key) < 0.6:
        turns += [
            f"And what is the opposite of {name}?",
            sentence(f"the opposite of {name} is {synsets[synset.opposites[0]].name}"),
        ]
    elif (others := [w for w in synset.words if w != name and w.islower()]) and unit("syn:" + synset.key) < 0.25:
        turns += [f"Is there another word for {name}?", sentence(f"yes, you can also say {listing(others[:2], 'or')}")]
    return turns
