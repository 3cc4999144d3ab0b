"""The layer-state protocol against a plain list of rows, under any order of operations."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fourfold.model.state import Cache, Fields, Rows

FIELDS: Fields = {"wide": ((2, 3), None), "gate": ((1,), torch.float32), "id": ((), torch.long)}
SEQUENCES = 3
lengths = st.lists(st.integers(0, 40), min_size=SEQUENCES, max_size=SEQUENCES)


class RowsMachine(RuleBasedStateMachine):
    """Rows beside a model of it: for each sequence, the list of the numbers appended."""

    @initialize()
    def start(self) -> None:
        self.rows = Rows(FIELDS, SEQUENCES, torch.float32, torch.device("cpu"))
        self.known: list[list[int]] = [[] for _ in range(SEQUENCES)]
        self.retired: list[tuple[Rows, list[list[int]]]] = []
        self.next = 1

    @rule(new=lengths)
    def append(self, new: list[int]) -> None:
        numbers = torch.arange(self.next, self.next + sum(new))
        wide = numbers[:, None, None].expand(-1, 2, 3).float()
        self.rows.append(new, wide=wide, gate=-numbers[:, None].float(), id=numbers)
        for sequence, part in zip(self.known, numbers.split(new), strict=True):
            sequence.extend(part.tolist())
        self.next += sum(new)

    @rule(shares=st.lists(st.floats(0, 1), min_size=SEQUENCES, max_size=SEQUENCES))
    def truncate(self, shares: list[float]) -> None:
        kept = [round(share * len(s)) for share, s in zip(shares, self.known, strict=True)]
        self.rows.truncate(kept)
        self.known = [s[:n] for s, n in zip(self.known, kept, strict=True)]

    @rule(order=st.lists(st.integers(0, SEQUENCES - 1), min_size=SEQUENCES, max_size=SEQUENCES))
    def fork(self, order: list[int]) -> None:
        """Go on with the copy; the original must stay as it was."""
        self.retired.append((self.rows, self.known))
        self.rows, self.known = self.rows.fork(order), [list(self.known[s]) for s in order]

    @rule(old=st.integers(0, SEQUENCES - 1), new=st.integers(0, SEQUENCES - 1), a=st.floats(0, 1), b=st.floats(0, 1))
    def copy_a_page(self, old: int, new: int, a: float, b: float) -> None:
        start, stop = sorted(round(x * len(self.known[old])) for x in (a, b))
        page = self.rows.snapshot(old, start, stop)
        assert isinstance(page, bytes)
        self.rows.restore(new, page)
        self.known[new] = self.known[new] + self.known[old][start:stop]

    @invariant()
    def same(self) -> None:
        for rows, known in [(self.rows, self.known), *self.retired[-2:]]:
            assert rows.lengths == [len(s) for s in known]
            for name, value in (("wide", lambda x: x[:, 0, 0]), ("gate", lambda x: -x[:, 0]), ("id", lambda x: x)):
                read = rows.read(name)
                assert read.shape[:2] == (SEQUENCES, max(map(len, known)))
                assert read.isfinite().all()
                for row, sequence in zip(read, known, strict=True):
                    assert value(row)[: len(sequence)].tolist() == sequence


RowsMachine.TestCase.settings = settings(max_examples=12, stateful_step_count=15, deadline=None)
TestRows = RowsMachine.TestCase


def filled(count: int = 5) -> Rows:
    rows = Rows(FIELDS, 2, torch.bfloat16, torch.device("cpu"))
    values = torch.arange(2.0 * count)
    rows.append([count, count], wide=values[:, None, None].expand(-1, 2, 3), gate=values[:, None], id=values.long())
    return rows


def test_formats_are_kept_by_pages() -> None:
    rows, other = filled(), filled(0)
    other.restore(1, rows.snapshot(0, 1, 4))
    assert {name: other.read(name).dtype for name in FIELDS} == {"wide": torch.bfloat16, "gate": torch.float32, "id": torch.int64}
    assert other.read("id")[1].tolist() == [1, 2, 3]
    assert other.lengths == [0, 3]


def test_misuse_raises() -> None:
    rows = filled()
    with pytest.raises(ValueError, match="keeps"):
        rows.append([1, 1], wide=torch.zeros(2, 2, 3))
    with pytest.raises(ValueError, match="keeps"):
        rows.append([1], wide=torch.zeros(1, 2, 3), gate=torch.zeros(1, 1), id=torch.zeros(1))
    for start, stop in ((0, 6), (-1, 2), (4, 3)):
        with pytest.raises(ValueError, match="holds 5 tokens"):
            rows.snapshot(0, start, stop)
    for wanted in ([6, 0], [0, -1], [1]):
        with pytest.raises(ValueError):
            rows.truncate(wanted)
    assert rows.lengths == [5, 5]


def test_appended_rows_are_copies_without_gradient() -> None:
    rows = filled(0)
    values = torch.ones(2, 2, 3, requires_grad=True)
    rows.append([1, 1], wide=values, gate=torch.ones(2, 1), id=torch.ones(2).long())
    with torch.no_grad():
        values.zero_()
    assert not rows.read("wide").requires_grad
    assert rows.read("wide").float().sum() == 12


def test_growth_is_by_halves_so_that_appending_stays_cheap() -> None:
    rows, reserved = filled(0), set()
    for step in range(500):
        rows.append([1, 1], wide=torch.zeros(2, 2, 3), gate=torch.zeros(2, 1), id=torch.full((2,), step))
        reserved.add(rows._buffers["id"].shape[1])
    assert len(reserved) < 8
    assert rows.read("id")[0].tolist() == list(range(500))


def test_bytes_per_token() -> None:
    assert filled().bytes_per_token() == 6 * 2 + 4 + 8
    cache = Cache(
        [{"attention": FIELDS}, {"attention": FIELDS, "engram": {"gate": ((4,), torch.float32)}}],
        2,
        torch.float32,
        torch.device("cpu"),
    )
    assert cache.bytes_per_token() == 2 * (6 * 4 + 4 + 8) + 16 + (8 + 8 + 1)
    assert cache.lengths == [0, 0]
