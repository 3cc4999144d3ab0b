"""Parts of queries and ranges of keys: nothing that is visible is left out, and little else is read."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.ops import parts

sizes = st.tuples(st.integers(1, 3), st.integers(1, 30), st.integers(1, 40))


@given(sizes=sizes, cost=st.integers(1, 300), density=st.sampled_from([0.0, 0.01, 0.3, 1.0]))
def test_every_visible_pair_is_in_one_part(sizes: tuple[int, int, int], cost: int, density: float) -> None:
    mask = torch.rand(sizes) < density
    seen = torch.zeros(mask.shape, dtype=torch.int)
    rows = torch.zeros(mask.shape[:2], dtype=torch.int)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parts, "PART", 1000)
        patch.setattr(parts, "STEP", 4)
        for s, part, read in parts.visible_parts(mask, cost):
            seen[s, part, read] += 1
            rows[s, part] += 1
            size = part.stop - part.start
            assert size * cost <= 1000 or size <= 4
            assert read.start % 4 == 0
            assert read.stop % 4 == 0 or read.stop == mask.shape[2]
            assert read.start < read.stop <= mask.shape[2]
            used = mask[s, part].any(0)[read]
            assert not used.any() or (used[:4].any() and used[-4:].any()), "a range ends where nobody reads"
    assert (rows == 1).all()
    assert (seen[mask] == 1).all()


def test_packed_documents_cost_little() -> None:
    """Sixteen documents in a row: the queries of a part read one of them, a sixteenth of all keys."""
    documents = torch.repeat_interleave(torch.arange(16), 128)[None]
    mask = (documents[..., None] == documents[:, None]) & torch.ones(2048, 2048, dtype=torch.bool).tril()
    read = sum((p.stop - p.start) * (r.stop - r.start) for _, p, r in parts.visible_parts(mask, 8 * 2048))
    assert read < 0.1 * 2048 * 2048
