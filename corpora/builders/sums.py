"""Sums of one and two digits, worked digit by digit in the thinking; a tenth of them is held out by its numbers."""

from builders.common import Document, pick
from fourfold.data.documents import unit

HELD_OUT = 0.1
WORDINGS = {
    "+": ("What is {a} + {b}?", "{a} + {b}", "{a} + {b} = ?", "How much is {a} plus {b}?", "Add {a} and {b}."),
    "-": ("What is {a} - {b}?", "{a} - {b}", "{a} - {b} = ?", "How much is {a} minus {b}?", "Subtract {b} from {a}."),
    "*": ("What is {a} * {b}?", "{a} * {b}", "{a} x {b} = ?", "How much is {a} times {b}?", "Multiply {a} by {b}."),
}
CHAINS = ("What is {s}?", "{s}", "{s} = ?", "Calculate {s}.", "Work out {s}.")


def build(sums: int, chains: int) -> list[Document]:
    """All sums of two one-digit numbers; of the others `sums` of each kind, and `chains` of three or four terms."""
    found = [_sum(a, b, sign) for sign in "+-*" for a in range(11) for b in range(11) if sign != "-" or a >= b]
    for sign in "+-*":
        pairs = [(a, b) for a in range(2, 100) for b in range(2, 100) if max(a, b) > 10 and _fits(a, b, sign)]
        pairs.sort(key=lambda pair: unit(f"sum:{sign}{pair}"))
        found += [_sum(a, b, sign) for a, b in pairs[:sums]]
    return found + [_chain(number) for number in range(chains)]


def _fits(a: int, b: int, sign: str) -> bool:
    return {"+": True, "-": a >= b, "*": min(a, b) < 20 and a * b < 1000}[sign]


def value(a: int, b: int, sign: str) -> int:
    return {"+": a + b, "-": a - b, "*": a * b}[sign]


def held_out(a: int, b: int, sign: str) -> bool:
    """The same for both orders of a sum; sums of one digit are all trained on, as tables are learnt by heart."""
    return max(a, b) > 10 and unit(f"sum-split:{sign}:{min(a, b)}:{max(a, b)}") < HELD_OUT


def _sum(a: int, b: int, sign: str) -> Document:
    key = f"{a}{sign}{b}"
    thoughts = worked(a, b, sign) if max(a, b) > 10 else None
    asked = pick(list(WORDINGS[sign]), "sum-way:" + key).format(a=a, b=b)
    return worked_chat(f"sums/{key}", "sums", held_out(a, b, sign), asked, thoughts, str(value(a, b, sign)))


def worked(a: int, b: int, sign: str) -> str:
    """The steps of a sum, a line each."""
    if sign == "+":
        return _added(a, b)
    if sign == "-":
        return _taken(a, b)
    large, small = max(a, b), min(a, b)
    other, split = (large, small) if small > 10 else (small, large)
    parts = [split // 10 * 10, split % 10]
    parts = [part for part in parts if part]
    lines = [f"{other} * {part} = {other * part}" for part in parts]
    if len(parts) > 1:
        lines.append(" + ".join(str(other * part) for part in parts) + f" = {a * b}")
    return "\n".join(lines)


def _added(a: int, b: int) -> str:
    ones = a % 10 + b % 10
    carry = ones // 10
    lines = [f"{a % 10} + {b % 10} = {ones}" + (f", write {ones % 10}, carry 1" if carry else "")]
    tens = f"{a // 10} + {b // 10}" + (" + 1" if carry else "")
    return "\n".join([*lines, f"{tens} = {a // 10 + b // 10 + carry}"])


def _taken(a: int, b: int) -> str:
    borrow = a % 10 < b % 10
    ones = a % 10 + 10 * borrow
    lines = [("borrow 1: " if borrow else "") + f"{ones} - {b % 10} = {ones - b % 10}"]
    tens = f"{a // 10}" + (" - 1" if borrow else "") + f" - {b // 10}"
    return "\n".join([*lines, f"{tens} = {a // 10 - borrow - b // 10}"])


def _chain(number: int) -> Document:
    """Three or four terms, added and taken away from the left; never below zero."""
    key = f"chain:{number}"
    total = 1 + int(unit(key) * 40)
    said, steps = str(total), []
    for i in range(2 + int(unit("terms:" + key) * 2)):
        term = 1 + int(unit(f"{key}:{i}") * 20)
        sign = "-" if term <= total and unit(f"sign:{key}:{i}") < 0.5 else "+"
        steps.append(f"{total} {sign} {term} = {value(total, term, sign)}")
        total, said = value(total, term, sign), f"{said} {sign} {term}"
    asked = pick(list(CHAINS), "way:" + key).format(s=said)
    return worked_chat(f"chains/{number}", "sums", unit("chain-split:" + said) < HELD_OUT, asked, "\n".join(steps), str(total))


def worked_chat(id: str, source: str, apart: bool, asked: str, thoughts: str | None, answer: str) -> Document:
    """A question, what the assistant thinks, and a bare number."""
    reply = {"role": "assistant", "content": answer} | ({"reasoning_content": thoughts} if thoughts else {})
    return Document(id, source, apart, messages=[{"role": "user", "content": asked}, reply])
