"""Facts of the World Factbook that have one short answer: capital, currency, region, language, highest point."""

import re
from pathlib import Path

from builders import factbook
from builders.common import Document, is_held_out, pick
from builders.facts import Fact, dialogue

LEFT_OUT = {"Israel", "West Bank", "Gaza Strip", "World", "European Union", "Taiwan"}  # disputed, or no country
NAMES = {"The Dominican": "Dominican Republic", "DRC": "Democratic Republic of the Congo", "Cocos": "Cocos Islands"}
FULL_NAMES = {
    "Cooperation Financiere en Afrique Centrale francs": "Central African francs",
    "Communaute Financiere Africaine francs": "West African francs",
    "Comptoirs Francais du Pacifique francs": "Pacific francs",
}
REGIONS = {
    "Africa": "Africa",
    "Asia": "Asia",
    "Europe": "Europe",
    "South America": "South America",
    "North America": "North America",
    "Oceania": "Oceania",
    "Middle East": "the Middle East",
    "Southeast Asia": "Southeast Asia",
    "Central America and the Caribbean": "Central America",
}
WITH_THE = r"The |Isle |Dem|.*(?:Islands|States|Emirates|Republic|Kingdom|Maldives|Netherlands|Philippines|Seychelles|Comoros)$"


def build(folder: Path) -> tuple[list[Fact], list[Document]]:
    """The facts, and chats over the longer answers that the factbook has."""
    facts: list[Fact] = []
    documents: list[Document] = []
    for stem, name, fields in factbook.countries(folder):
        held_out = is_held_out("country:" + stem)
        name = NAMES.get(name, name)
        if name == stem:  # the factbook has no short name for it
            continue
        if name not in LEFT_OUT:
            phrase = "the " + name.removeprefix("The ") if re.match(WITH_THE, name) else name
            facts += _facts(stem, phrase, fields, held_out)
        documents += _descriptions(stem, name, fields, held_out)
    return facts, documents


def _facts(stem: str, name: str, fields: dict[str, str], held_out: bool) -> list[Fact]:
    found: list[Fact] = []

    def add(relation: str, answer: str, **more) -> None:
        if answer and len(answer.split()) <= 4:
            recall = not gives_away(name, answer)
            found.append(Fact(relation, name, answer, "country-" + stem, held_out, recall=recall, **more))

    seat = re.split(r"[;(,]", factbook.first(fields, "Government / Capital / name"))[0].strip()
    seat = seat if re.fullmatch(r"[A-Z][\w'. -]+", seat) and not re.search(r"\d|none|time", seat) else ""
    add("capital", seat)
    money = re.match(r"([A-Za-z' ]+?) \([A-Z]{3}", fields.get("Economy / Exchange rates", ""))
    if money:
        full = FULL_NAMES.get(money.group(1), money.group(1))
        unit = full.split()[-1]
        add("currency", unit, full=full, aliases=tuple(dict.fromkeys((full, unit.removesuffix("s")))))
    region = REGIONS.get(fields.get("Geography / Map references", "").split(";")[0].strip(), "")
    if name != "Russia":  # in two of them, and listed under one
        add("region", region, aliases=(region.removeprefix("the "), "the Caribbean")[: 2 if region == "Central America" else 1])
    add("language", _language(fields.get("People and Society / Languages", "")))
    peak = re.match(r"((?:[A-Z][\w'-]+ ?(?:de |la |of |del |al-)*)+?) [\d,]+ m\b", fields.get(_PEAK, ""))
    peak_name = peak.group(1).strip() if peak else ""
    add("highest point", peak_name, aliases=(re.sub(r"^(Mount|Mont|Monte|Cerro|Gora|Pico) ", "", peak_name),))
    adjective = fields.get("People and Society / Nationality / adjective", "")
    if re.fullmatch(r"[A-Z]\w+", adjective):
        found.append(Fact("people", name, adjective, "country-" + stem, held_out, recall=False))
    if seat and seat not in name:
        found.append(Fact("capital of", seat, name, "capital-" + stem, held_out, recall=False))
    return found


_PEAK = "Geography / Elevation extremes / highest point"


def _language(value: str) -> str:
    """The first official language, or the only one."""
    official = re.match(r"([A-Z][a-z]+)(?: [\d.]+%| or [A-Z]\w+)? \((?:official[,;) ](?! ?working)|de facto)", value)
    only = re.fullmatch(r"([A-Z][a-z]+)", value)
    match = official or only
    return match.group(1) if match else ""


def gives_away(entity: str, answer: str) -> bool:
    """Whether a word of one starts as a word of the other does."""
    words = [[w.lower() for w in re.findall(r"[A-Za-z]{3,}", text)] for text in (entity, answer)]
    return any(a[:3] == b[:3] for a in words[0] for b in words[1] if "the" not in (a, b))


def _descriptions(stem: str, name: str, fields: dict[str, str], held_out: bool) -> list[Document]:
    """The questions with long answers, once each, two to a chat now and then."""
    found, turns = [], []
    for number, (ways, answer) in enumerate(factbook.questions(name, fields)):
        key = f"{stem}/{number}"
        turns.append((pick([*ways, f"{ways[0][:1].lower()}{ways[0][1:].rstrip('?.')}"], "chat-way:" + key), answer))
        if number and len(turns) >= pick([1, 1, 2], "chat-size:" + key):
            found.append(dialogue(f"countries/{key}", "countries", held_out, turns))
            turns = []
    return found
