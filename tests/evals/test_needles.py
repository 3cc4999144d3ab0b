"""Needles: asked from copies of one cache, judged by the whole answer, told apart by depth."""

import numpy as np
import pytest

from fourfold.data.corpus import Corpus
from fourfold.data.needles import NeedleTask, needle_task
from fourfold.data.packing import tokenise
from fourfold.engine.batches import replies
from fourfold.engine.generate import end_tokens
from fourfold.errors import ConfigError
from fourfold.evals.needles import Reply, ask, depth, figures, needles
from fourfold.model.transformer import Transformer


@pytest.fixture
def task(model: Transformer, corpus: Corpus) -> NeedleTask:
    return needle_task(model.tokenizer, np.asarray(tokenise(corpus, model.tokenizer, "held_out")), 300, 3, seed=2)


def test_a_model_is_asked_with_its_context(model: Transformer, task: NeedleTask) -> None:
    """Random weights know no answer, so the expected ones are replaced by what it says after the whole prompt."""
    ends, longest = end_tokens(model, model.tokenizer), 6
    for selection in ("sparse", "dense"):
        said = [replies(model, [task.context + question], ends, longest, selection)[0] for question, _ in task.questions]
        kept = [(question, own) for (question, _), own in zip(task.questions, said, strict=True) if own]
        # the reply is cut one token after the longest answer; only one that had ended by then can be right
        ended = [len(own) < longest for _, own in kept]
        found = ask(model, NeedleTask(task.context, kept), selection)
        texts = [model.tokenizer.decode(own).strip() for _, own in kept]
        assert [reply.right for reply in found] == ended or len(set(texts)) < len(texts)


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 2, 0)])
def test_answers_are_compared_whole_and_depths_recorded(
    model: Transformer, task: NeedleTask, order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = [answer for _, answer in task.questions]

    def oracle(_model, prompts, ends, max_tokens, selection, cache) -> list[list[int]]:
        assert cache.lengths == [len(task.context)] * 3 and list(prompts) == [question for question, _ in task.questions]
        assert max_tokens > max(map(len, right))
        return [right[i] for i in order]

    monkeypatch.setattr("fourfold.evals.needles.replies", oracle)
    found = ask(model, task, "sparse")
    correct = [i == place for place, i in enumerate(order)]
    assert [(r.right, r.swapped) for r in found] == [(good, not good) for good in correct]
    depths = [reply.depth for reply in found]
    assert depths == sorted(depths) and all(0 <= d <= 1 for d in depths)


def test_a_longer_or_shorter_reply_is_wrong(model: Transformer, task: NeedleTask, monkeypatch: pytest.MonkeyPatch) -> None:
    right = [answer for _, answer in task.questions]
    said = [right[0][:-1], [*right[1], right[1][0]], []]
    monkeypatch.setattr("fourfold.evals.needles.replies", lambda *_: said)
    assert not any(reply.right or reply.swapped for reply in ask(model, task, "sparse"))


def test_depth_and_figures() -> None:
    assert depth("0123456789", "5") == 0.5 and depth("0155", "5") is None and depth("01", "5") is None
    found = [
        Reply(0.0, True, False),
        Reply(0.19, False, True),
        Reply(0.99, True, False),
        Reply(1.0, True, False),
        Reply(None, False, False),
    ]
    result = figures(found)
    assert (result["right"], result["total"], result["swapped"]) == (3, 5, 1)
    assert [(part["right"], part["total"]) for part in result["depths"]] == [(1, 2), (0, 0), (0, 0), (0, 0), (2, 2)]
    assert result["depths"][4]["depth"] == [0.8, 1.0]


def test_lengths_counts_and_selections_are_crossed(model: Transformer, corpus: Corpus) -> None:
    rows = needles(model, corpus, [256, 512], contexts=2)["results"]
    cases = {(row["length"], row["needles"], row["selection"]): row["total"] for row in rows}
    assert cases == {(n, k, s): 2 * k for n in (256, 512) for k in (1, 4) for s in ("sparse", "dense")}
    assert needles(model, corpus, contexts=1)["results"][0]["length"] == 512  # all that the model has
    with pytest.raises(ConfigError, match="--lengths: 513 is not within 256 and the 512 positions"):
        needles(model, corpus, [256, 513])
