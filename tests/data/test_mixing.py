"""Mixes: every source has its share at every moment, and a batch depends on its number alone."""

import pytest
import torch

from fourfold.data.mixing import MixedRows


class Counting:
    """Rows that say which they are: the source's mark, then the row's number."""

    def __init__(self, mark: int):
        self.mark = mark

    def row_at(self, place: int) -> int:
        return place

    def take(self, rows: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.tensor([[self.mark, row, 0] for row in rows]), torch.tensor([[7, 7, 8]]).repeat(len(rows), 1)


SHARES = [(1,), (1, 1), (0.8, 0.12, 0.08), (5, 3, 1), (0.6, 0.3, 0.1), (1, 1e-3), (1,) * 9, (0.37, 0.29, 0.21, 0.08, 0.05)]


@pytest.mark.parametrize("shares", SHARES)
def test_each_source_has_its_share_of_every_beginning_to_less_than_a_row(shares: tuple[float, ...]) -> None:
    mixed = MixedRows({str(i): Counting(i) for i in range(len(shares))}, {str(i): s for i, s in enumerate(shares)})
    given = [0] * len(shares)
    for place in range(2500):
        name, nth = mixed.source_of(place)
        assert nth == given[int(name)]  # its own rows, one after another
        given[int(name)] += 1
        assert all(abs(n - s / sum(shares) * (place + 1)) < 1 for n, s in zip(given, shares, strict=True))
    assert mixed.counts(2500) == {str(i): n for i, n in enumerate(given)}


def test_a_batch_depends_on_its_number_alone() -> None:
    def made() -> MixedRows:
        return MixedRows({"a": Counting(1), "b": Counting(2)}, {"a": 0.7, "b": 0.3}, {"b": 40})

    whole = [made().batch(step, 4) for step in range(9)]
    other = made()
    for step in (8, 0, 5, 5, 3):  # as after a resume
        again = other.batch(step, 4)
        assert torch.equal(whole[step].tokens, again.tokens) and torch.equal(whole[step].documents, again.documents)
    rows = torch.cat([batch.tokens for batch in whole])
    assert torch.equal(rows, torch.cat([made().batch(step, 1).tokens for step in range(36)]))  # the size only groups the rows
    assert rows[rows[:, 0] == 2][:, 1].tolist() == list(range(40, 40 + int((rows[:, 0] == 2).sum())))
    assert rows[rows[:, 0] == 1][:, 1].tolist() == list(range(int((rows[:, 0] == 1).sum())))


def test_rows_of_a_batch_share_no_document() -> None:
    documents = MixedRows({"a": Counting(1), "b": Counting(2)}, {"a": 1, "b": 1}).batch(0, 6).documents
    assert (documents[:, 0] == documents[:, 1]).all() and (documents[:, 1] != documents[:, 2]).all()
    assert len(documents.unique()) == 12
