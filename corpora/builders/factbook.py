"""The World Factbook of 2015: one document a country, and short questions over its facts."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from builders.common import Document, chat, is_held_out, pick, prose, sentence
from fourfold.data.documents import unit

SKIPPED = {"Geography / Map references", "Geography / Geographic coordinates"}
NUMERIC = 0.2  # fields with a greater share of digits are tables, which teach no English


def build(folder: Path) -> list[Document]:
    """Countries, territories, oceans and the world; all that concerns one of them is in one split."""
    documents = []
    for stem, name, facts in countries(folder):
        held_out = is_held_out("country:" + stem)
        documents.append(Document(f"factbook/{stem}", "factbook", held_out, _render(name, facts)))
        documents += _chats(stem, name, facts, held_out)
    return documents


def countries(folder: Path) -> Iterator[tuple[str, str, dict[str, str]]]:
    """(the file's stem, name, facts by dotted field) of all of them."""
    for path in sorted((folder / "package").glob("*/*.json")):
        if path.parent.name != "meta":
            facts = dict(_flatten(json.loads(path.read_text("utf-8"))))
            yield path.stem, _name(facts, path.stem, folder), facts


def _flatten(node: dict, prefix: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    found = []
    for key, value in node.items():
        if isinstance(value, dict):
            found += _flatten(value, prefix if key == "text" else (*prefix, key))
        elif isinstance(value, str) and value.strip():
            found.append((" / ".join(prefix if key == "text" else (*prefix, key)), prose(value.replace("++", ";"))))
    return found


def _name(facts: dict[str, str], stem: str, folder: Path) -> str:
    short = facts.get("Government / Country name / conventional short form", "none").split(" (")[0]
    if short.lower() != "none" and "note" not in short and len(short) < 40:
        return _unturn(short)
    listed = re.search(rf"`{stem}` ([^\n(]+)", (folder / "package/README.md").read_text("utf-8"))
    return _unturn(listed.group(1).strip()) if listed else stem


def _unturn(name: str) -> str:
    """ "Bahamas, The" -> "The Bahamas"."""
    last, _, first = name.partition(", ")
    return f"{first} {last}" if first else name


def _render(name: str, facts: dict[str, str]) -> str:
    lines, section, field = [f"{name} (as of 2015)"], "", ""
    for key, value in facts.items():
        parts = key.split(" / ")
        digits = sum(c.isdigit() for c in value) / len(value)
        if (
            " / ".join(parts[:2]) in SKIPPED
            or digits > NUMERIC
            or value.startswith(("NA", "NEGL"))
            or "-year" in key
            or "years" in key
        ):
            continue
        if parts[0] != section:
            section = parts[0]
            lines.append(f"\n{section}")
        if section == "Introduction":
            lines.append(sentence(value))
        elif len(parts) == 2:
            lines.append(sentence(f"{parts[1]}: {value}"))
        elif parts[1] == field:
            lines[-1] = lines[-1].rstrip(".") + f"; {' '.join(parts[2:])} {value}."
        else:
            lines.append(sentence(f"{parts[1]}: {' '.join(parts[2:])} {value}"))
        field = parts[1] if len(parts) > 1 else ""
    return prose("\n".join(lines))


def first(facts: dict[str, str], *keys: str, longest: int = 220) -> str:
    """The first of the fields that is there, cut at a sentence or a clause, without years and notes."""
    value = next((facts[k] for k in keys if k in facts), "")
    value = re.sub(r"\s*\((?:[^()]*\b(?:19|20)\d\d\b[^()]*)\)", "", re.split(r"; note|note:| \(includes", value)[0])
    while len(value) > longest and re.search(r"[;.,] ", value):
        value = re.split(r"[;.,] (?!.*[;.,] )", value)[0]
    return value.strip(" ;,.") if len(value) <= longest else ""


def questions(name: str, facts: dict[str, str]) -> list[tuple[list[str], str]]:
    """(ways to ask, answer) for each fact that is there."""
    capital = re.split(r"[;(,]", first(facts, "Government / Capital / name"))[0].strip()
    borders = re.sub(r" [\d.,]+ km", "", first(facts, "Geography / Land boundaries / border countries", longest=400))
    population = re.match(r"[\d,]{3,}", first(facts, "People and Society / Population"))
    background = first(facts, "Introduction / Background", longest=420)
    rows = [
        (
            [
                f"What is the capital of {name}?",
                f"what's the capital of {name}",
                f"Which city is the capital of {name}?",
            ],
            capital and f"The capital of {name} is {capital}.",
        ),
        (
            [f"Where is {name}?", f"Where is {name} located?"],
            _says(f"{name} is in ", first(facts, "Geography / Location")),
        ),
        (
            [f"Which countries border {name}?", f"What are the neighbours of {name}?"],
            borders and f"{name} borders {borders}.",
        ),
        (
            [f"How many people live in {name}?", f"What is the population of {name}?"],
            population and f"About {population[0]} people lived in {name} in 2015.",
        ),
        (
            [f"What languages are spoken in {name}?", f"Which language do people speak in {name}?"],
            _says("Languages: ", first(facts, "People and Society / Languages")),
        ),
        (
            [f"What is the climate of {name}?", f"What is the weather like in {name}?"],
            _says(f"The climate of {name} is ", first(facts, "Geography / Climate")),
        ),
        (
            [f"What does the land look like in {name}?", f"Describe the terrain of {name}."],
            _says("", first(facts, "Geography / Terrain")),
        ),
        (
            [f"How big is {name}?", f"What is the area of {name}?"],
            _says(f"{name} covers ", first(facts, "Geography / Area / total")),
        ),
        (
            [f"What natural resources does {name} have?"],
            _says(f"{name} has ", first(facts, "Geography / Natural resources")),
        ),
        (
            [f"What is the highest point of {name}?"],
            _says("The highest point is ", first(facts, "Geography / Elevation extremes / highest point")),
        ),
        (
            [f"What kind of government does {name} have?"],
            _says(f"The government of {name} is a ", first(facts, "Government / Government type")),
        ),
        ([f"When did {name} become independent?"], _says("", first(facts, "Government / Independence"))),
        (
            [f"What religions are there in {name}?"],
            _says("Religions: ", first(facts, "People and Society / Religions")),
        ),
        ([f"Tell me about {name}.", f"tell me something about {name}"], background and sentence(background)),
    ]
    return [(ways, answer) for ways, answer in rows if answer]


def _says(lead: str, value: str) -> str:
    return sentence(lead + value) if value else ""


def _chats(stem: str, name: str, facts: dict[str, str], held_out: bool) -> list[Document]:
    """Every question once, one or two a chat."""
    documents, turns = [], []
    for number, (ways, answer) in enumerate(questions(name, facts)):
        key = f"chat/factbook/{stem}/{number}"
        turns += [pick(ways, key), answer]
        if len(turns) >= 4 or unit(key) < 0.6:
            documents.append(chat(key, held_out, *turns))
            turns = []
    return documents + ([chat(f"chat/factbook/{stem}/last", held_out, *turns)] if turns else [])
