"""Questions about dishes: what one needs, how one makes them, when one eats them."""

from pathlib import Path

from builders import recipes
from builders.common import Document, pick
from builders.facts import dialogue
from fourfold.data.documents import unit

MANY = 1400
NEEDS = (
    "What do I need to make {d}?",
    "What goes into {d}?",
    "what are the ingredients of {d}",
    "Which ingredients does {d} have?",
    "Tell me what I need for {d}.",
)
UNSEEN_NEEDS = ("I want to cook {d}; what should I buy?", "Can you list what {d} is made of?")
STEPS = ("How do I make {d}?", "how is {d} made", "How do I cook {d}?", "Tell me how to make {d}.", "And how do I make it?")
WHEN = ("Is {d} for breakfast, lunch or dinner?", "When do people eat {d}?", "Which meal is {d} for?")


def build(folder: Path) -> list[Document]:
    """What each of MANY dishes needs, and for some of them how they are made."""
    found: list[Document] = []
    seen: set[str] = set()
    for key, held_out, dish, meal, steps, items in recipes.dishes(folder):
        if dish in seen or not 3 <= len(items) <= 9 or len(found) >= MANY:
            continue
        seen.add(dish)
        new = not held_out and unit("unseen-dish:" + key) < 0.02
        asked = pick(list(UNSEEN_NEEDS if new else NEEDS), "needs:" + key).format(d=dish)
        turns = [(asked, f"You need {', '.join(items[:-1])} and {items[-1]}.")]
        if len(steps) < 500 and unit("steps:" + key) < 0.3:
            turns.append((pick(list(STEPS), "how:" + key).format(d=dish), steps))
        elif unit("when:" + key) < 0.3:
            turns.append((pick(list(WHEN), "when:" + key).format(d=dish), f"{dish[:1].upper()}{dish[1:]} is for {meal}."))
        found.append(dialogue(f"dishes/{key}", "dishes", held_out or new, turns))
    return found
