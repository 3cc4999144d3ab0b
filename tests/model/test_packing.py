"""Packed documents = each alone: neither attention nor n-grams, convolution or multi-token prediction look across."""

import dataclasses

import pytest
import torch
from torch import Tensor

from fourfold.model.inputs import Batch
from fourfold.model.transformer import TrainOutput, Transformer
from tests.builders import CONFIGS, build, random_tokens
from tests.compare import assert_close, assert_same_greedy

LENGTHS = [[37, 1, 5, 2, 44, 3, 4], [1, 1, 94], [96], [12, 13, 14, 15, 16, 17, 9]]  # rows of documents, 96 tokens each


@pytest.fixture(scope="module", params=CONFIGS)
def model(request: pytest.FixtureRequest) -> Transformer:
    return build(CONFIGS[request.param]())


def packed() -> tuple[Tensor, Tensor]:
    """Tokens and documents [4, 96]; the same numbers come again in other rows, as in a stream cut into rows."""
    documents = [torch.repeat_interleave(torch.arange(len(row)) + 3 * i, torch.tensor(row)) for i, row in enumerate(LENGTHS)]
    return random_tokens(4, 96), torch.stack(documents)


def pieces(tokens: Tensor) -> list[tuple[int, slice, Tensor]]:
    """row, place and tokens [1, n] of every document."""
    found = []
    for row, lengths in enumerate(LENGTHS):
        start = 0
        for length in lengths:
            found.append((row, slice(start, start + length), tokens[row : row + 1, start : start + length]))
            start += length
    return found


def states(model: Transformer, batch: Batch) -> TrainOutput:
    with torch.no_grad():
        return model.train_forward(batch)


def test_documents_see_only_themselves(model: Transformer) -> None:
    tokens, documents = packed()
    whole = states(model, Batch.from_tokens(tokens, documents))
    depths = [x.unflatten(0, tokens.shape) for x in [whole.hidden, *whole.mtp_hidden]]
    for row, place, alone in pieces(tokens):
        own = states(model, Batch.from_tokens(alone))
        for depth, (mine, expected) in enumerate(zip(depths, [own.hidden, *own.mtp_hidden], strict=True)):
            known = max(alone.shape[1] - depth, 0)  # depth j assumes the next j tokens known: at the end there are none
            what = f"depth {depth}, row {row}, tokens {place.start} to {place.stop}"
            assert_close(mine[row, place][:known], expected[:known], what)


def test_gradients_stay_within_a_document(model: Transformer) -> None:
    """No path at all, however faint, from a document to the one before it."""
    tokens, documents = packed()
    table = model.embed.weight.detach()[tokens].requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model.embed, "forward", lambda t: table.flatten(0, 1) if t.numel() == tokens.numel() else None)
        hidden = model.trunk(Batch.from_tokens(tokens, documents)).unflatten(0, tokens.shape)
    hidden[0, 43:45].square().sum().backward()  # the document of two tokens at 43
    reached = table.grad.abs().sum(-1) > 0
    assert reached[0, 43:45].all()
    assert int(reached.sum()) == 2


def test_packed_documents_through_a_cache(model: Transformer) -> None:
    tokens, documents = packed()
    whole = Batch.from_tokens(tokens, documents)
    cache, out = model.new_cache(4), []
    with torch.no_grad():
        expected = model.logits(model.trunk(whole)).unflatten(0, tokens.shape)
        for start, stop in ((0, 39), (39, 40), (40, 77), (77, 96)):
            grid = torch.arange(4 * 96).view(4, 96)[:, start:stop].flatten()
            fields = {name: getattr(whole, name)[..., grid] for name in ("tokens", "positions", "modality", "documents")}
            part = Batch(lengths=(stop - start,) * 4, **fields)
            out.append(model(part, cache=cache).logits.unflatten(0, (4, stop - start)))
    assert_same_greedy(torch.cat(out, dim=1), expected)


def test_rows_do_not_know_of_each_other(model: Transformer) -> None:
    tokens, documents = packed()
    order = torch.tensor([2, 0, 3, 1])
    one = states(model, Batch.from_tokens(tokens, documents))
    two = states(model, Batch.from_tokens(tokens[order], documents[order]))
    for mine, expected in zip([two.hidden, *two.mtp_hidden], [one.hidden, *one.mtp_hidden], strict=True):
        assert_close(mine.unflatten(0, tokens.shape), expected.unflatten(0, tokens.shape)[order])
    alone = states(model, Batch.from_tokens(tokens[1:2], documents[1:2]))
    assert_close(one.hidden.unflatten(0, tokens.shape)[1], alone.hidden)


def test_later_tokens_change_nothing_before_them(model: Transformer) -> None:
    tokens = random_tokens(1, 60)
    changed = torch.cat([tokens[:, :40], (tokens[:, 40:] + 1) % model.config.vocab_size], dim=1)
    with torch.no_grad():
        assert_close(model(changed).logits[:, :40], model(tokens).logits[:, :40])


def test_positions_restart_and_only_differences_of_positions_count(model: Transformer) -> None:
    tokens, documents = packed()
    batch = Batch.from_tokens(tokens, documents)
    assert batch.positions[0].view(4, 96)[0, :45].tolist() == [*range(37), 0, *range(5), 0, 1]
    if model.config.attention.rope_scaling is None:  # YaRN's angles are of the same kind, but one case is enough
        moved = dataclasses.replace(batch, positions=batch.positions + 57)
        with torch.no_grad():
            assert_close(model.trunk(moved), model.trunk(batch))
