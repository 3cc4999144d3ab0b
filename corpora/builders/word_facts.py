"""Facts of WordNet: what kind of thing a word names, opposites, what a person did; and definitions in several wordings."""

import re
from collections import Counter
from pathlib import Path

from builders import wordnet
from builders.common import Document, article, pick
from builders.facts import Fact, dialogue
from builders.wordnet import Synset
from fourfold.data.documents import unit

# the answers of "what kind of ... is it?", by relation and WordNet's lexicographer file
KINDS = {
    ("animal", "05"): """dog cat horse bird fish snake insect spider frog lizard turtle monkey whale shark rodent bear deer sheep
        duck butterfly moth beetle parrot owl hawk crab cattle antelope fly ant bat worm mollusk""",
    ("plant", "20"): "tree shrub herb grass fern vine mushroom fungus cactus orchid palm wildflower moss weed",
    ("food", "13"): "fruit vegetable cheese bread soup sauce cake wine beer cocktail candy pasta sausage meat pie cookie spice tea",
    ("thing", "06"): """weapon boat ship car hat shoe garment building chair drum knife gun bag clock camera telescope
        hammer saw bed table bridge road aircraft boot dress coat cap stove lamp lock church theater computer screw""",
}
PROFESSIONS = set(
    """physicist chemist mathematician astronomer biologist philosopher economist psychologist physician surgeon engineer inventor
    architect painter sculptor composer conductor pianist violinist singer guitarist poet novelist dramatist writer author critic
    historian journalist actor actress comedian dancer choreographer filmmaker photographer explorer navigator general admiral
    statesman king queen emperor pope theologian saint botanist geologist anthropologist linguist publisher printer
    industrialist financier feminist abolitionist suffragist missionary aviator athlete jurist diplomat""".split()
)
NATIONS = set(
    """American English British French German Italian Spanish Dutch Russian Austrian Swiss Swedish Danish Norwegian Polish Irish
    Scottish Greek Roman Hungarian Belgian Canadian Portuguese Czech Finnish Welsh Indian Chinese Japanese""".split()
)
PER_KIND = 12  # facts with the same answer, so that no answer is most of a relation
KNOWN = 4  # how often the corpus must have each word of what is asked for
PEOPLE, OPPOSITES = 150, 170
DEFINED = 6500
DEFINITIONS = ("What is {t}?", "what is {t}", "What does {n} mean?", "Define {n}.", "Can you tell me what {t} is?", "Explain {n}.")
UNSEEN_DEFINITIONS = ("How would you explain {t} to me?", "What is meant by {n}?")


def build(folder: Path, read: str) -> tuple[list[Fact], list[Document]]:
    """The facts, and chats with definitions. `read`: what the corpus trains on, in lower case; a held-out entity must not occur."""
    synsets = wordnet.load(folder)
    split = wordnet.splits(synsets)
    common = [row for row in wordnet.common_words(folder) if row[2] in split]
    facts = _kinds(common, synsets, split, read) + _people(synsets, split, read) + _opposites(folder, common, split)
    return facts, _definitions(common, synsets, split)


def _never_read(name: str, read: str) -> bool:
    return name.lower() not in read


def _kinds(common: list[tuple[str, str, str]], synsets: dict[str, Synset], split: dict[str, bool], read: str) -> list[Fact]:
    """The most used words of each kind, and the held-out ones that were never read."""
    counts = Counter(re.findall(r"[a-z]+", read))
    found: list[Fact] = []
    taken: Counter[tuple[str, bool]] = Counter()
    for word, letter, key in common:
        synset = synsets[key]
        for (relation, file), names in KINDS.items():
            if letter != "n" or synset.lexfile != file or word not in synset.words or len(word.split()) > 2:
                continue  # a name, which has a capital in WordNet
            above = _ancestor(synset, synsets, set(names.split()))
            kind = above.name if above else ""
            known = all(counts[part] >= KNOWN for part in re.findall(r"[a-z]+", word))
            if not kind or _alike(word, kind) or not (_never_read(word, read) if split[key] else known):
                continue
            entity = f"{article(word)} {word}" if file == "20" else synset.subject(word)
            if taken[kind, split[key]] < PER_KIND and (file == "13" or entity != word):
                taken[kind, split[key]] += 1
                found.append(
                    Fact(relation, entity, kind, "word-" + key, split[key], aliases=tuple(above.words[1:]) if above else ())
                )
    return found


def _ancestor(synset: Synset, synsets: dict[str, Synset], names: set[str]) -> Synset | None:
    """The nearest of the named kinds above a synset."""
    while synset.parents:
        synset = synsets[synset.parents[0]]
        if synset.name in names:
            return synset
    return None


def _alike(word: str, kind: str) -> bool:
    """Whether the word says its kind, as in "sheepdog"."""
    return kind in word or word[-3:] == kind[-3:] or any(part[:4] == kind[:4] for part in word.split())


def _people(synsets: dict[str, Synset], split: dict[str, bool], read: str) -> list[Fact]:
    """Profession and nationality, of people whose gloss gives one of each."""
    found: list[Fact] = []
    taken: Counter[tuple[str, bool]] = Counter()
    people = [s for s in synsets.values() if s.is_person and s.key in split and s.verb == "was" and len(s.name.split()) > 1]
    for synset in sorted(people, key=lambda s: unit("person:" + s.key)):
        held_out = split[synset.key]
        named = [synsets[k] for k in synset.instance_of if synsets[k].name in PROFESSIONS]
        names = list(dict.fromkeys(word for profession in named for word in profession.words))
        nation = synset.gloss.removeprefix("United States").split()[0]
        nation = "American" if synset.gloss.startswith("United States ") else nation if nation in NATIONS else ""
        if not names or not nation or (held_out and not _never_read(synset.name, read)):
            continue
        if taken[names[0], held_out] < PER_KIND and sum(n for (_, h), n in taken.items() if h == held_out) < PEOPLE:
            taken[names[0], held_out] += 1
            about = "person-" + synset.key
            found.append(Fact("profession", synset.name, names[0], about, held_out, aliases=tuple(names[1:])))
            found.append(Fact("nationality", synset.name, nation, about, held_out))
    return found


def _opposites(folder: Path, common: list[tuple[str, str, str]], split: dict[str, bool]) -> list[Fact]:
    """Opposites of the most used words, both ways, without such as "un-" gives away."""
    pairs = _opposite_words(folder)
    found: list[Fact] = []
    for word, letter, key in common:
        other = pairs.get((key, word))
        if letter in "anr" and other and len(found) < OPPOSITES and not split[key] and not _kindred(word, other):
            found.append(Fact("opposite", word, other, f"word-{key}-{word}", False))
    return found


def _kindred(word: str, other: str) -> bool:
    """Whether one says the other, as in "unhappy", or one is a name."""
    alike = other[-4:] == word[-4:] or other[:4] == word[:4] or other in word or word in other
    return alike or not (other.islower() and word.islower())


def _opposite_words(folder: Path) -> dict[tuple[str, str], str]:
    """(synset, word) to the word that is its opposite: WordNet's "!" joins words, not synsets."""
    words: dict[str, list[str]] = {}
    found: list[tuple[str, int, str, int]] = []
    for part, letter in (("noun", "n"), ("adj", "a"), ("adv", "r")):
        for line in (folder / f"usr/share/wordnet/data.{part}").read_text("utf-8").splitlines():
            if line[:1].isdigit():
                fields = line.partition(" | ")[0].split()
                count, key = int(fields[3], 16), letter + fields[0]
                words[key] = [re.sub(r"\((a|p|ip)\)$", "", fields[4 + 2 * i]).replace("_", " ") for i in range(count)]
                for at in (i for i, f in enumerate(fields) if f == "!" and i >= 4 + 2 * count):
                    source, target = int(fields[at + 3][:2], 16), int(fields[at + 3][2:], 16)
                    found.append((key, source, {"s": "a"}.get(fields[at + 2], fields[at + 2]) + fields[at + 1], target))
    return {(key, words[key][i - 1]): words[other][j - 1] for key, i, other, j in found if i and j and other in words}


def _definitions(common: list[tuple[str, str, str]], synsets: dict[str, Synset], split: dict[str, bool]) -> list[Document]:
    """What the most used words mean, one wording each of those that are trained on, and some with wordings that are not."""
    found: list[Document] = []
    asked: set[str] = set()
    for word, letter, key in common:
        synset = synsets[key]
        if key in asked or len(found) >= DEFINED or synset.gloss.startswith("(") or synset.is_person:
            continue
        asked.add(key)
        _, answer, *more = wordnet.question(word, synset, synsets, split)
        answer = answer.replace(" means to to ", " means to ")
        name = next((w for w in synset.words if w.lower() == word), synset.name)
        subject = synset.subject(name)
        thing = f"{article(name)} {name}" if subject.startswith("the ") else subject
        quoted = f'"{name}"' if letter != "n" else thing if thing[:1].isupper() else f'the word "{name}"'
        ways = DEFINITIONS if letter == "n" else (f"What does {quoted} mean?", f"what does {quoted} mean", f"Explain {quoted}.")
        new = unit("unseen-definition:" + key) < 0.02
        way = pick(list(UNSEEN_DEFINITIONS if new and letter == "n" else ways), "define:" + key)
        turns = [(way.format(t=thing, n=quoted), answer)]
        if more and unit("more:" + key) < 0.5:
            turns.append((more[0], more[1]))
        found.append(dialogue(f"words/{key}", "words", split[key] or (new and letter == "n"), turns))
    return found
