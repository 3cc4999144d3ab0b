"""Media through the trunk: cached = plain and chunked = plain cut anywhere, batched = alone, packed = alone, text = text only."""

import pytest
import torch
from torch import Tensor

from fourfold.media.spans import Span, join
from fourfold.model.experts import Router
from fourfold.model.inputs import Batch
from fourfold.model.state import Cache
from fourfold.model.trace import Trace
from fourfold.model.transformer import Transformer
from tests.builders import build, random_tokens, token_classes
from tests.compare import assert_close, assert_same_greedy, assert_same_selection
from tests.model import showing
from tests.model.showing import CONFIGS, heads, step, story

WHOLE = story()
LENGTH = len(WHOLE)
Said = tuple[Tensor, Tensor]  # by the head of words, by the head of codes


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(CONFIGS[request.param]())


@pytest.fixture(scope="module", params=["sparse", "dense"])
def selection(request: pytest.FixtureRequest) -> str:
    return request.param


@torch.no_grad()
def alone(model: Transformer, whole: Span | Batch, selection: str = "sparse") -> tuple[Said, Trace]:
    """One pass over a whole sequence."""
    trace, batch = Trace(), model.batch([whole]) if isinstance(whole, Span) else whole
    hidden = model.trunk(batch, trace=trace, selection=selection)
    return (model.logits(hidden), model.code_logits(hidden)), trace


def assert_same(mine: Said, expected: Said, what: str = "") -> None:
    for name, one, other in zip(("words", "codes"), mine, expected, strict=True):
        assert_same_greedy(one, other, f"{name} {what}")


@torch.no_grad()
def fed(model: Transformer, spans: list[Span], sizes: list[list[int]], cache: Cache, selection: str) -> list[tuple[Said, Tensor]]:
    """Span s in chunks of sizes[s], a step of all in one ragged batch: what is said of each, and its experts [T, layers, k]."""
    made = {id(span): model.batch([span]) for span in spans}
    wholes = [(span, made[id(span)]) for span in spans]
    at, out = [0] * len(spans), [[] for _ in spans]
    for step_sizes in zip(*sizes, strict=True):
        trace, parts = Trace(), [slice(a, a + size) for a, size in zip(at, step_sizes, strict=True)]
        hidden = model.trunk(step(wholes, parts), cache, trace, selection)
        experts = torch.stack([layer.expert_ids for layer in trace.layers if layer.expert_ids is not None], 1)
        for place, part in enumerate(zip(hidden.split(step_sizes), experts.split(step_sizes), strict=True)):
            out[place].append(part)
        at = [part.stop for part in parts]
    joined = [[torch.cat(each) for each in zip(*parts, strict=True)] for parts in out]
    return [((model.logits(hidden), model.code_logits(hidden)), experts) for hidden, experts in joined]


def experts_of(trace: Trace) -> Tensor:
    return torch.stack([layer.expert_ids for layer in trace.layers if layer.expert_ids is not None], 1)


def test_the_story_has_everything_and_more_than_is_selected(model: Transformer) -> None:
    assert set(WHOLE.modality.tolist()) == set(range(6))
    assert model.config.selection.index_topk * 3 < LENGTH
    assert int(WHOLE.tokens.max()) >= model.config.vocab_size, "codes that are no words"


def test_cut_in_two_at_every_place(model: Transformer, selection: str) -> None:
    """All cuts beside each other in one ragged batch, from nothing cut off to all of it."""
    expected, trace = alone(model, WHOLE, selection)
    sizes = [[cut, LENGTH - cut] for cut in range(LENGTH + 1)]
    cache = model.new_cache(len(sizes))
    for cut, (mine, experts) in enumerate(fed(model, [WHOLE] * len(sizes), sizes, cache, selection)):
        assert_same(mine, expected, f"cut at {cut}")
        assert_same_selection(experts, experts_of(trace), f"experts, cut at {cut}")
    assert cache.lengths == [LENGTH] * len(sizes)


def test_in_chunks_of_every_size(model: Transformer, selection: str) -> None:
    expected, trace = alone(model, WHOLE, selection)
    sizes = [[max(min(size, LENGTH - size * i), 0) for i in range(LENGTH)] for size in range(1, LENGTH)]
    kept = range(0, len(sizes), 1 if selection == "sparse" else 5)
    sizes = [sizes[i] for i in kept]
    cache = model.new_cache(len(sizes))
    for row, (mine, experts) in zip(sizes, fed(model, [WHOLE] * len(sizes), sizes, cache, selection), strict=True):
        assert_same(mine, expected, f"chunks of {row[0]}")
        assert_same_selection(experts, experts_of(trace), f"experts, chunks of {row[0]}")


@torch.no_grad()
def test_decoded_token_by_token_alone(model: Transformer, selection: str) -> None:
    """The path of one sequence, in which nothing needs a mask; what each query reads is compared too."""
    expected, whole = alone(model, WHOLE, selection)
    batch, cache, hidden, traces = model.batch([WHOLE]), model.new_cache(1), [], []
    for place in range(LENGTH):
        traces.append(Trace())
        hidden.append(model.trunk(batch.cut(place, place + 1), cache, traces[-1], selection))
    assert_same((model.logits(torch.cat(hidden)), model.code_logits(torch.cat(hidden))), expected)
    for place, trace in enumerate(traces):
        for mine, full in zip(trace.layers, whole.layers, strict=True):
            if mine.index_mask is not None:
                assert_same_selection(mine.index_mask[0], full.index_mask[0, place, None, : place + 1], f"keys of {place}")


def test_each_kind_beside_the_others_is_as_alone(model: Transformer) -> None:
    """Rows of one kind each, the story and plain text in one ragged batch; then again in odd chunks through a cache."""
    kinds = [
        showing.picture(3, 2, 5),
        showing.clip(2, 2, 2, 6),
        showing.sound(7, 7),
        showing.drawing(3, 3, 8),
        showing.film(3, 1, 3, 9),
    ]
    rows = [join([showing.text(2 + i, 20 + i), kind, showing.text(3, 30 + i)]) for i, kind in enumerate(kinds)]
    rows = [WHOLE, *rows, showing.text(17, 40), showing.picture(1, 1, 10)]
    with torch.no_grad():
        together = model.trunk(model.batch(rows)).split([len(row) for row in rows])
    sizes = [[len(row) // 3, i % 2, 1 - i % 2, len(row) - len(row) // 3 - 1] for i, row in enumerate(rows)]
    chunked = fed(model, rows, sizes, model.new_cache(len(rows)), "sparse")
    for i, (row, hidden, (later, _)) in enumerate(zip(rows, together, chunked, strict=True)):
        expected, _ = alone(model, row)
        assert_same((model.logits(hidden), model.code_logits(hidden)), expected, f"row {i}")
        assert_same(later, expected, f"row {i} in chunks")


def test_packed_documents_are_each_alone(model: Transformer) -> None:
    """Pictures, sound and films side by side in one row: neither attention, n-grams, convolution nor prediction look across."""
    documents = [WHOLE, showing.picture(1, 2, 3), join([showing.text(2, 5), showing.film(2, 2, 2, 4)]), showing.text(6, 6)]
    with torch.no_grad():
        out = model.train_forward(model.batch([documents, [showing.sound(3, 9), WHOLE]]))
        depths = [out.hidden, *out.mtp_hidden]
        start = 0
        for document in [*documents, showing.sound(3, 9), WHOLE]:
            own = model.train_forward(model.batch([document]))
            for depth, (mine, expected) in enumerate(zip(depths, [own.hidden, *own.mtp_hidden], strict=True)):
                known = max(len(document) - depth, 0)
                assert_close(mine[start : start + known], expected[:known], f"depth {depth} of the document at {start}")
            start += len(document)


def test_packed_rows_through_a_cache(model: Transformer) -> None:
    batch, cache = model.batch([[showing.picture(), WHOLE, showing.sound()]]), model.new_cache(1)
    with torch.no_grad():
        expected, total = model.trunk(batch), batch.lengths[0]
        parts = [model.trunk(batch.cut(start, min(start + 7, total)), cache) for start in range(0, total, 7)]
    assert_close(torch.cat(parts), expected)


def test_cut_back_at_every_place_and_gone_on_otherwise(model: Transformer) -> None:
    """Forks of one cache, each cut back to another length, go on with another picture, all in one batch."""
    full, whole = model.new_cache(1), model.batch([WHOLE])
    fed(model, [WHOLE], [[LENGTH]], full, "sparse")
    tail = join([showing.picture(1, 3, 11), showing.drawing(1, 2, 12), showing.text(2, 13)])
    shown, lengths = model.batch([tail]).vectors, list(range(0, LENGTH + 1, 3))
    branches = full.fork([0] * len(lengths))
    branches.truncate(lengths)
    spans = [join([WHOLE.cut(0, n), tail]) for n in lengths]  # a tower has seen all of a picture of which a part is kept
    others = [Batch.from_spans([span], torch.cat([whole.cut(0, n).vectors, shown])) for n, span in zip(lengths, spans, strict=True)]
    with torch.no_grad():
        rest = step(list(zip(spans, others, strict=True)), [slice(n, n + len(tail)) for n in lengths])
        hidden = model.trunk(rest, branches).split(rest.lengths)
    for n, other, mine in zip(lengths, others, hidden, strict=True):
        expected, _ = alone(model, other)
        assert_same((model.logits(mine), model.code_logits(mine)), (expected[0][n:], expected[1][n:]), f"cut back to {n}")
    assert full.lengths == [LENGTH], "forks are copies"


def test_pages_rebuild_an_equal_cache(model: Transformer) -> None:
    """Snapshots that begin and end within spans."""
    full, rebuilt = model.new_cache(1), model.new_cache(1)
    fed(model, [WHOLE], [[LENGTH]], full, "sparse")
    for start in range(0, LENGTH, 7):
        rebuilt.restore(0, full.snapshot(0, start, min(start + 7, LENGTH)))
    with torch.no_grad():
        more = Batch.from_tokens(random_tokens(1, 5), past=[LENGTH])
        assert torch.equal(model.trunk(more, rebuilt), model.trunk(more, full))


def test_text_is_as_in_the_model_without_media_parts(model: Transformer) -> None:
    """The same weights, bit for bit: logits, further depths, and step by step."""
    config = model.config.but(media_in=None, media_out=None)
    plain = Transformer(config, token_classes(config)).eval()
    plain.load_state_dict({name: tensor for name, tensor in model.state_dict().items() if name in plain.state_dict()})
    tokens = random_tokens(2, 50)
    documents = (torch.arange(50) >= torch.tensor([[20], [33]])).long()
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, plain(tokens).logits)
        mine, theirs = (m.train_forward(Batch.from_tokens(tokens, documents)) for m in (model, plain))
        for one, other in zip([mine.hidden, *mine.mtp_hidden], [theirs.hidden, *theirs.mtp_hidden], strict=True):
            assert torch.equal(one, other)
        caches = model.new_cache(2), plain.new_cache(2)
        for chunk in tokens.split([31, 1, 1, 17], dim=1):
            assert torch.equal(model(chunk, cache=caches[0]).logits, plain(chunk, cache=caches[1]).logits)


def test_what_media_add_to_a_state_dict(model: Transformer) -> None:
    config = model.config.but(media_in=None, media_out=None)
    plain = Transformer(config, token_classes(config)).state_dict()
    added = {name for name in model.state_dict() if name not in plain}
    assert not plain.keys() - model.state_dict().keys()
    assert {name for name in added if not name.startswith("media.")} == {
        "code_embed.weight",
        "code_head",
        *(["code_places.waves"] if model.code_places is not None else []),
        *(f"{name}.media_bias" for name, module in model.named_modules() if isinstance(module, Router) and module.balanced),
    }


def test_what_is_shown_matters(model: Transformer) -> None:
    """Without this the comparisons above could pass on media that nobody looks at: each span changes the last word."""
    parts = [showing.picture, showing.clip, showing.sound, showing.drawing, showing.film]
    for part in parts:
        one, other = (join([showing.text(2, 1), part(seed=seed), showing.text(2, 2)]) for seed in (0, 1))
        assert torch.equal(one.positions, other.positions)
        difference = heads_of(model, one)[-1] - heads_of(model, other)[-1]
        assert difference.abs().max() > 1e-3, part.__name__


def heads_of(model: Transformer, span: Span) -> Tensor:
    with torch.no_grad():
        return heads(model, model.trunk(model.batch([span])))
