"""How each kind of fact is asked and told. `{e}` is the entity, `{E}` the same at the start of a sentence, `{a}` the answer.

The wordings under `unseen` are never trained on: recall.jsonl asks with them.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Relation:
    """`asked`: wordings to train on; `follow`: the same after the entity was named; `says`: answers as sentences; `repeats`: how
    often a fact is asked in all."""

    asked: tuple[str, ...]
    unseen: tuple[str, ...]
    says: tuple[str, ...]
    follow: tuple[str, ...] = ()
    repeats: int = 14


def _kind(noun: str) -> Relation:
    return Relation(
        asked=(
            f"What kind of {noun} is {{e}}?",
            f"what kind of {noun} is {{e}}",
            f"{{E}} is what kind of {noun}?",
            f"Which kind of {noun} is {{e}}?",
            f"Tell me what kind of {noun} {{e}} is.",
            f"What sort of {noun} is {{e}}?",
            f"Do you know what kind of {noun} {{e}} is?",
            f"What type of {noun} is {{e}}?",
        ),
        unseen=(
            f"Can you say which sort of {noun} {{e}} is?",
            f"I wonder what kind of {noun} {{e}} might be.",
        ),
        says=("{E} is a kind of {a}.", "{E} is a kind of {a}.", "It is a kind of {a}."),
    )


RELATIONS = {
    "capital": Relation(
        asked=(
            "What is the capital of {e}?",
            "Which city is the capital of {e}?",
            "what's the capital of {e}",
            "Name the capital of {e}.",
            "Tell me the capital of {e}.",
            "Do you know the capital of {e}?",
            "What is the capital city of {e}?",
            "The capital of {e} is called what?",
            "capital of {e}?",
            "What is the name of the capital of {e}?",
        ),
        unseen=(
            "Can you tell me which city {e} has as its capital?",
            "If I wanted to see the capital of {e}, which city would I go to?",
            "Which is {e}'s capital city?",
        ),
        says=("The capital of {e} is {a}.", "The capital of {e} is {a}.", "{a} is the capital of {e}.", "It is {a}."),
        follow=("And what is its capital?", "What is the capital there?", "Which city is its capital?"),
    ),
    "currency": Relation(
        asked=(
            "What is the currency of {e}?",
            "Which currency is used in {e}?",
            "what money do they use in {e}",
            "What kind of money do people use in {e}?",
            "Name the currency of {e}.",
            "Tell me the currency of {e}.",
            "What money is used in {e}?",
            "What do people in {e} pay with?",
            "currency of {e}?",
        ),
        unseen=(
            "Which currency would I need on a trip to {e}?",
            "Can you say what currency {e} has?",
        ),
        says=("The currency of {e} is {full}.", "People in {e} pay in {full}.", "The money of {e} is {full}."),
        follow=("And its currency?", "What money do people use there?", "Which currency do they have?"),
    ),
    "region": Relation(
        asked=(
            "In which part of the world is {e}?",
            "Which region of the world is {e} in?",
            "what part of the world is {e} in",
            "Tell me in which part of the world {e} lies.",
            "{E} belongs to which region?",
            "Which part of the world does {e} belong to?",
            "Name the region where {e} is.",
            "Where in the world is {e}?",
        ),
        unseen=(
            "Do you know which part of the world I would find {e} in?",
            "What region would you say {e} is part of?",
        ),
        says=("{E} is in {a}.", "{E} lies in {a}.", "It is in {a}."),
        follow=("And where in the world is it?", "Which part of the world is that in?"),
    ),
    "language": Relation(
        asked=(
            "What is the main language of {e}?",
            "Which language is the official one in {e}?",
            "what language do they speak in {e}",
            "Name the main language of {e}.",
            "Tell me the official language of {e}.",
            "What is the official language of {e}?",
            "Which language do most people in {e} use?",
            "language of {e}?",
        ),
        unseen=(
            "What language should I learn before I move to {e}?",
            "Can you tell me which language {e} has as its main one?",
        ),
        says=("The main language of {e} is {a}.", "People in {e} speak {a}.", "It is {a}."),
        follow=("And which language do they speak there?", "What is its main language?"),
    ),
    "highest point": Relation(
        asked=(
            "What is the highest point of {e}?",
            "Which is the highest point of {e}?",
            "what's the highest place in {e}",
            "Name the highest point in {e}.",
            "Tell me the highest point of {e}.",
            "What is the highest place in {e} called?",
            "highest point of {e}?",
        ),
        unseen=(
            "If I climbed to the highest point of {e}, where would I be?",
            "Do you know the name of the highest point in {e}?",
        ),
        says=("The highest point of {e} is {a}.", "{a} is the highest point of {e}.", "It is {a}."),
        follow=("And its highest point?", "What is the highest point there?"),
    ),
    "capital of": Relation(
        asked=(
            "{E} is the capital of which country?",
            "Which country has {e} as its capital?",
            "Of what country is {e} the capital?",
            "what country is {e} the capital of",
        ),
        unseen=("{E} is a capital, but of which country?",),
        says=("{E} is the capital of {a}.", "It is the capital of {a}."),
        repeats=4,
    ),
    "people": Relation(
        asked=(
            "What do you call something from {e}?",
            "What is the adjective for {e}?",
            "what adjective goes with {e}",
            "Which adjective belongs to {e}?",
        ),
        unseen=("How would you describe a thing that comes from {e}, in one adjective?",),
        says=("Something from {e} is {a}.", "The adjective is {a}."),
        repeats=4,
    ),
    "animal": _kind("animal"),
    "plant": _kind("plant"),
    "food": _kind("food"),
    "thing": _kind("thing"),
    "opposite": Relation(
        asked=(
            'What is the opposite of "{e}"?',
            'what is the opposite of "{e}"',
            'Which word is the opposite of "{e}"?',
            'Tell me the opposite of "{e}".',
            'Name the opposite of "{e}".',
            'Give me the opposite of "{e}".',
            'What word means the opposite of "{e}"?',
            'opposite of "{e}"?',
        ),
        unseen=(
            'If something is not "{e}" at all but the opposite, what is the word?',
            'Do you know a word with the opposite meaning of "{e}"?',
        ),
        says=('The opposite of "{e}" is "{a}".', 'The opposite of "{e}" is "{a}".', 'It is "{a}".'),
    ),
    "profession": Relation(
        asked=(
            "What was the profession of {e}?",
            "What was {e} by profession?",
            "what did {e} do for a living",
            "What did {e} do?",
            "Tell me the profession of {e}.",
            "What is {e} known as?",
            "{E} worked as what?",
        ),
        unseen=(
            "Do you know what {e} was by trade?",
            "In which profession did {e} become known?",
        ),
        says=("{E} was {an} {a}.", "{E} was {an} {a}.", "{E} is known as {an} {a}."),
    ),
    "nationality": Relation(
        asked=(
            "What nationality was {e}?",
            "what was the nationality of {e}",
            "Tell me the nationality of {e}.",
            "What was the nationality of {e}?",
            "Of what nationality was {e}?",
            "Which nationality did {e} have?",
        ),
        unseen=(
            "Can you say what nationality {e} had?",
            "Do you know of which nationality {e} was?",
        ),
        says=("{E} was {a}.", "The nationality of {e} was {a}."),
        follow=("And what was the nationality?",),
    ),
}
