"""The evals by name, each on the corpus that ships for it."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from fourfold.data.corpus import Corpus
from fourfold.errors import ConfigError, FourfoldError
from fourfold.evals.arithmetic import arithmetic
from fourfold.evals.experts import experts
from fourfold.evals.indexer import indexer
from fourfold.evals.needles import needles
from fourfold.evals.perplexity import WINDOW, perplexity
from fourfold.evals.recall import recall
from fourfold.model.transformer import Transformer

TEXT, CHAT = "tiny-text", "tiny-chat"
TASKS = ("perplexity", "recall", "needles", "indexer", "experts", "arithmetic")


@dataclass(frozen=True)
class Options:
    """limit: documents, questions, contexts, rows or batches of an eval (None: its own number). lengths: of the needles' contexts
    (None: all that fit). window: tokens that perplexity reads at once.
    """

    limit: int | None = None
    lengths: Sequence[int] | None = None
    window: int = WINDOW


def run(model: Transformer, task: str, options: Options) -> dict[str, dict]:
    """task -> its figures and `seconds`, for one task or "all".

    Of all, one that this model or corpus cannot have is `skipped` with the reason; asked for alone it raises its FourfoldError.
    """
    if task != "all":
        return {task: _timed(model, task, options)}
    results = {}
    for name in TASKS:
        try:
            results[name] = _timed(model, name, options)
        except FourfoldError as error:
            results[name] = {"skipped": str(error)}
    return results


def _timed(model: Transformer, task: str, options: Options) -> dict:
    began = time.perf_counter()
    return _run(model, task, options) | {"seconds": round(time.perf_counter() - began, 1)}


def _run(model: Transformer, task: str, options: Options) -> dict:
    match task:
        case "perplexity":
            return perplexity(model, Corpus.open(TEXT), window=options.window, limit=options.limit)
        case "recall":
            return recall(model, Corpus.open(CHAT), options.limit)
        case "needles":
            return needles(model, Corpus.open(TEXT), options.lengths, options.limit)
        case "indexer":
            return indexer(model, Corpus.open(TEXT), options.limit)
        case "experts":
            return experts(model, Corpus.open(TEXT), options.limit)
        case "arithmetic":
            return arithmetic(model, Corpus.open(CHAT), options.limit)
    raise ConfigError(f"--task: {task!r} is not known; choose one of {', '.join(TASKS)}, all")
