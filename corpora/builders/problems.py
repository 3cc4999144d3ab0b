"""Word problems of `reasoning-gym` (GSM-Symbolic templates), their worked solutions shortened to the sums in them."""

import importlib
import re
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from random import Random
from types import ModuleType

from builders.common import Document
from builders.sums import worked_chat
from fourfold.data.documents import unit

PER_TEMPLATE = 48
HELD_OUT_TEMPLATES = 20
LARGEST = 9999
FOLDERS = ("reasoning_gym", "reasoning_gym.arithmetic", "reasoning_gym.arithmetic.gsm_symbolic")
NUMBER = r"\d+(?:\.\d+)?"
CONSTANTS = {str(n) for n in (*range(13), 24, 30, 52, 60, 100, 365, 1000, 0.5, 0.25, 1.5, 2.0, 3.0, 4.0)}
SHARES = {"1", "100"}  # where the question has percentages, a number out of nowhere may be one that was worked out in words
UNITS = re.compile(r"(?<=\d) ?(?!x )[A-Za-z][A-Za-z' /.-]*(?=[-+*/x=)])")
EQUATION = re.compile(r"([\d(][\d\s.+*/x()-]*?)=\s*(\d+(?:\.\d+)?)(?![\d.]*\s*[+*/x=-])")


def build(folder: Path) -> list[Document]:
    """Up to PER_TEMPLATE problems of each template that its authors call right; whole templates are held out."""
    made = {number: _problems(number, generate) for number, generate in sorted(_templates(folder).items())}
    usable = [number for number, rows in made.items() if len(rows) >= PER_TEMPLATE // 4]
    apart = set(sorted(usable, key=lambda number: unit(f"template:{number}"))[:HELD_OUT_TEMPLATES])
    return [
        worked_chat(f"problems/{number}/{i}", "problems", number in apart, *row)
        for number in usable
        for i, row in enumerate(made[number])
    ]


def _problems(number: int, generate: Callable) -> list[tuple[str, str, str]]:
    """Different (question, thoughts, answer) of one template."""
    found: dict[str, tuple[str, str, str]] = {}
    for seed in range(4 * PER_TEMPLATE):
        made = generate(Random(1000 * number + seed), 1.0)
        asked, answer = " ".join(made["question"].split()), made["answer"]
        thoughts = shortened(asked, made["metadata"]["answer_cot"], answer)
        if thoughts and len(found) < PER_TEMPLATE:
            found[asked] = (asked, thoughts, answer)
    return list(found.values())


def shortened(asked: str, solution: str, answer: str) -> str | None:
    """The sums of a worked solution, a line each.

    None when a sum is wrong or too large, has a number from nowhere, or the last does not give the answer.
    """
    if not re.fullmatch(r"\d{1,4}", answer):
        return None
    text = re.sub(r"[$£€,%]", "", solution.partition("####")[0])
    text = re.sub(UNITS, " ", text)
    lines: list[str] = []
    known = set(re.findall(NUMBER, asked.replace(",", ""))) | (SHARES if "%" in asked else CONSTANTS)
    for left, right in EQUATION.findall(text):
        sum = " ".join(re.sub(r"([-+*/x()])", r" \1 ", left).replace("x", "*").split())
        if not re.search(r"[-+*/]", sum):
            continue
        made = _value(sum)
        if made is None or made != Fraction(right) or made > LARGEST or set(re.findall(NUMBER, sum)) - known:
            return None
        known.add(right)
        lines.append(f"{sum} = {right}".replace("( ", "(").replace(" )", ")"))
    lines = list(dict.fromkeys(lines))
    return "\n".join(lines) if lines and lines[-1].endswith(f"= {answer}") and len(lines) <= 6 else None


def _value(sum: str) -> Fraction | None:
    """The value of a sum of numbers and signs, exactly; None when it is none."""
    if not re.fullmatch(r"[\d\s.+*/()-]+", sum):
        return None
    try:
        return eval(re.sub(r"\d+(?:\.\d+)?", lambda m: f"Fraction('{m.group()}')", sum), {"Fraction": Fraction})
    except (SyntaxError, TypeError, ZeroDivisionError):
        return None


def _templates(folder: Path) -> dict[int, Callable]:
    """The generators by number. Their packages are stood in for, so that neither all of it nor its needs are imported."""
    for name in FOLDERS:
        module = sys.modules.setdefault(name, ModuleType(name))
        module.__path__ = [str(folder / name.replace(".", "/"))]
    text = (folder / "reasoning_gym/arithmetic/gsm_symbolic/gsm_symbolic.py").read_text("utf-8")
    right = set(map(int, re.findall(r"\d+", text.partition("tasks_ok = [")[2].partition("]")[0])))
    halves = [importlib.import_module(f"{FOLDERS[-1]}.generators_{part}") for part in ("00_49", "50_99")]
    return {n: getattr(halves[n // 50], f"generate_{n}") for n in sorted(right)}
