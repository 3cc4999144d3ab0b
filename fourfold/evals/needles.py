"""Needles in a haystack of real text: facts put into a long context, and asked for after it.

The context is read once, in chunks, into a cache; each question goes on from a copy of it. Every length counts all that the model
sees: context, question and answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.data.corpus import Corpus
from fourfold.data.needles import NeedleTask, needle_task
from fourfold.data.packing import tokenise
from fourfold.data.progress import progress
from fourfold.engine.batches import prefill, replies
from fourfold.engine.generate import end_tokens
from fourfold.errors import ConfigError
from fourfold.evals.statistics import share
from fourfold.model.transformer import Transformer

LENGTHS = (1024, 2048, 4096, 8192)
NEEDLES = (1, 4)
CONTEXTS = 20  # of each length and number of needles
SHORTEST = 256  # tokens that hold several needles with a question and text around them
DEPTHS = 5  # equal parts of the context by which results are told apart


@dataclass(frozen=True)
class Reply:
    """One question's outcome. depth: where its needle stands, from 0 (start) to 1 (end); None when it stands more than once.

    `swapped`: wrong, but the answer of another needle of the same context.
    """

    depth: float | None
    right: bool
    swapped: bool


def needles(model: Transformer, corpus: Corpus, lengths: Sequence[int] | None = None, contexts: int | None = None) -> dict:
    """Shares of right answers by length, number of needles and selection ("sparse", and "dense" where there is an indexer).

    Lengths not given are those of 1k to 8k that the model has positions for. Raises ConfigError for one that it has not.
    """
    most = model.config.max_position_embeddings
    lengths = list(lengths or (n for n in LENGTHS if n <= most)) or [most]
    for length in lengths:
        if not SHORTEST <= length <= most:
            raise ConfigError(f"--lengths: {length} is not within {SHORTEST} and the {most} positions of the model; choose others")
    haystack = tokenise(corpus, model.tokenizer, "held_out")
    selections = ["sparse", "dense"] if model.config.selection is not None else ["dense"]
    cases = [(n, k, s) for n in lengths for k in NEEDLES for s in range(contexts or CONTEXTS)]
    found: dict[tuple[int, int, str], list[Reply]] = {}
    for length, count, seed in progress(cases, "needles", sum(case[0] for case in cases), lambda case: case[0]):
        task = needle_task(model.tokenizer, haystack, length, count, seed)
        for selection in selections:
            found.setdefault((length, count, selection), []).extend(ask(model, task, selection))
    rows = [{"length": n, "needles": k, "selection": s, **figures(own)} for (n, k, s), own in found.items()]
    return {"corpus": corpus.name, "split": "held_out", "contexts": contexts or CONTEXTS, "results": rows}


def ask(model: Transformer, task: NeedleTask, selection: str) -> list[Reply]:
    """Every question of a task, each from a copy of the cache of its context."""
    tokenizer = model.tokenizer
    wanted = [tokenizer.decode(answer).strip() for _, answer in task.questions]
    cache = prefill(model, task.context, selection).fork([0] * len(task.questions))
    asked, ends = [question for question, _ in task.questions], end_tokens(model, tokenizer)
    left = model.config.max_position_embeddings + 1 - len(task.context) - max(map(len, asked))
    longest = max(len(answer) for _, answer in task.questions) + 1  # one more, which has to be an end
    said = replies(model, asked, ends, min(longest, left), selection, cache)
    context = tokenizer.decode(task.context)
    depths = [depth(context, answer) for answer in wanted]
    texts = [tokenizer.decode(ids).strip() for ids in said]
    pairs = zip(texts, wanted, depths, strict=True)
    return [Reply(where, text == right, text != right and text in wanted) for text, right, where in pairs]


def depth(context: str, answer: str) -> float | None:
    """Where an answer stands in the text of a context, from 0 to 1; None when it does not stand there exactly once."""
    return context.index(answer) / len(context) if answer and context.count(answer) == 1 else None


def figures(found: Sequence[Reply]) -> dict:
    """The share of right answers, the number of swapped ones, and the shares by depth, from the start of the context on."""
    parts = []
    for part in range(DEPTHS):
        own = [r.right for r in found if r.depth is not None and min(int(r.depth * DEPTHS), DEPTHS - 1) == part]
        parts.append({"depth": [part / DEPTHS, (part + 1) / DEPTHS], **share(sum(own), len(own))})
    total = share(sum(r.right for r in found), len(found))
    return total | {"swapped": sum(r.swapped for r in found), "depths": parts}
