"""Human chat turns of `chatterbot-corpus`, and a few turns of our own in which the model says what it is."""

from pathlib import Path

import yaml

from builders.common import Document, capital, chat, is_held_out, prose

WHOLE = ("conversations", "greetings", "health")  # elsewhere the turns after the first answer are other answers
FILES = (
    "ai",
    "computers",
    "conversations",
    "emotion",
    "food",
    "greetings",
    "health",
    "science",
    "tech_support",
    "trivia",
)
SYSTEM = "You are Fourfold, a small language model. You answer briefly."
OURS = [
    ("Who are you?", "I am Fourfold, a small language model."),
    ("What are you?", "I am Fourfold, a very small language model trained from scratch."),
    ("What is your name?", "My name is Fourfold."),
    ("Are you a human?", "No, I am a small language model. My name is Fourfold."),
    (
        "What can you do?",
        "I can say what a word means, tell a few facts about countries and give simple recipes. I am small, so I am often wrong.",
    ),
    ("Can you help me?", "I will try. Ask me what a word means, or about a country or a recipe."),
    ("Are you always right?", "No. I am a very small model and I make many mistakes."),
    ("Thank you!", "You are welcome."),
    ("Thanks", "You are welcome!"),
    ("Goodbye", "Goodbye! Have a good day."),
    ("Hello", "Hello! What would you like to know?"),
    ("Hi", "Hi! How can I help you?"),
    ("Good morning", "Good morning! What can I do for you?"),
]


def build(folder: Path) -> list[Document]:
    """The conversations of the English files that are fit for an assistant, cut to whole pairs of turns."""
    documents, seen = [], set()
    for name in FILES:
        data = yaml.safe_load((folder / f"chatterbot_corpus/data/english/{name}.yml").read_text("utf-8"))
        for number, turns in enumerate(data["conversations"]):
            if not all(isinstance(t, str) and t.strip() for t in turns):
                continue  # YAML that was meant as text
            turns = [capital(prose(t)) for t in turns[: len(turns) // 2 * 2 if name in WHOLE else 2]]
            if len(turns) > 1 and tuple(turns) not in seen:
                seen.add(tuple(turns))
                documents.append(chat(f"chat/{name}/{number}", is_held_out("turn:" + turns[0].lower().strip(" ?!.")), *turns))
    return documents


def ours() -> list[Document]:
    """What we wrote ourselves, with and without a system message; never held out."""
    return [chat(f"chat/fourfold/{i}-{bool(s)}", False, *pair, system=s) for i, pair in enumerate(OURS) for s in (None, SYSTEM)]
