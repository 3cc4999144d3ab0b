"""Sums the model has never seen: held-out arithmetic chats, answered after thinking, judged by the final number alone."""

import re
from collections.abc import Sequence

from fourfold.data.corpus import Corpus
from fourfold.data.documents import Document
from fourfold.data.progress import progress
from fourfold.engine.batches import replies
from fourfold.engine.generate import end_tokens
from fourfold.errors import DataError
from fourfold.evals.answers import last_number
from fourfold.evals.statistics import share, subset
from fourfold.model.transformer import Transformer
from fourfold.text.chat import render

SOURCES = ("sums", "problems")
AT_ONCE = 32
LONGEST = 256  # tokens of thoughts and answer together


def arithmetic(model: Transformer, corpus: Corpus, limit: int | None = None) -> dict:
    """The share of chats whose last answer ends in the right number, in all and by kind."""
    chats = [d for d in corpus.documents("held_out") if d.messages and d.source in SOURCES and wanted(d) is not None]
    if not chats:
        raise DataError(f"{corpus.folder}: holds out no chats of {' or '.join(SOURCES)}; choose a corpus that does")
    chats = subset(chats, limit, lambda chat: chat.id)
    said = ask(model, chats)
    right = [number == wanted(chat) for chat, number in zip(chats, said, strict=True)]
    kinds = [kind(chat) for chat in chats]
    by_kind = {name: [r for r, k in zip(right, kinds, strict=True) if k == name] for name in sorted(set(kinds))}
    result = {"corpus": corpus.name, "split": "held_out", "total": share(sum(right), len(right))}
    return result | {
        "unanswered": sum(number is None for number in said),
        "kinds": {name: share(sum(own), len(own)) for name, own in by_kind.items()},
    }


def wanted(chat: Document) -> str | None:
    """The final number of the last answer; None for a chat that does not end with one."""
    last = chat.messages[-1]
    return last_number(last.get("content") or "") if last["role"] == "assistant" else None


def kind(chat: Document) -> str:
    """`problems` and `chains` (of several operations) by their ids; single sums by their operation, as in `sums/38+22`."""
    name, _, rest = chat.id.partition("/")
    operation = re.search(r"(?<=\d)\D", rest)
    return f"{name} {operation[0]}" if name == "sums" and operation else name


def ask(model: Transformer, chats: Sequence[Document]) -> list[str | None]:
    """The final number of each reply to the last question; None without one, or when the thinking does not end."""
    tokenizer, ends = model.tokenizer, end_tokens(model, model.tokenizer)
    prompts = [render(chat.messages[:-1], tokenizer, thinking=True) for chat in chats]
    thought, said = tokenizer.special("/think"), [None] * len(chats)
    order = sorted(range(len(chats)), key=lambda i: len(prompts[i]))
    groups = [order[start : start + AT_ONCE] for start in range(0, len(order), AT_ONCE)]
    for group in progress(groups, "arithmetic", len(order), len):
        for i, ids in zip(group, replies(model, [prompts[i] for i in group], ends, LONGEST), strict=True):
            said[i] = last_number(tokenizer.decode(ids[ids.index(thought) + 1 :])) if thought in ids else None
    return said
