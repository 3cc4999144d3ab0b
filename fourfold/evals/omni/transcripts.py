"""Transcripts against what was said: edit distance over characters (Levenshtein 1966).

Both sides are brought to the letters, digits and single spaces that a voice can be heard to say.
"""

import re
import unicodedata
from collections.abc import Sequence


def audible(text: str) -> str:
    """Lower case without accents, signs and spare spaces; an apostrophe joins ("don't" is dont), other signs part words."""
    text = unicodedata.normalize("NFKD", text.casefold())
    text = "".join(c for c in text if not unicodedata.combining(c) and c not in "'’")
    return " ".join(re.sub(r"[^\w]|_", " ", text).split())


def edits(said: Sequence, wanted: Sequence) -> int:
    """The fewest insertions, deletions and substitutions that turn one sequence into the other."""
    row = list(range(len(wanted) + 1))
    for i, mine in enumerate(said, 1):
        before, row[0] = row[0], i
        for j, theirs in enumerate(wanted, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (mine != theirs))
    return row[-1]


def character_errors(said: str, wanted: str) -> tuple[int, int]:
    """Edits between a transcript and what was said, and the characters of the latter: their ratio of sums is the CER."""
    heard, truth = audible(said), audible(wanted)
    return edits(heard, truth), len(truth)
