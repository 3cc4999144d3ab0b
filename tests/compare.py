"""The one comparator: what "close" means whenever two ways of getting the same thing are compared.

Close, in fp32: no number differs by more than 1e-4 of the largest expected one (at least 1), the greedy token is the same unless
the two best logits lie within 1e-3, and no selection (indexer, compressed blocks, routers) differs, because ties go by rule.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

RELATIVE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # of the largest number
NEAR_TIE = 1e-3  # two logits this near may change places


@dataclass(frozen=True)
class Report:
    """What a comparison measured, for tests that print or bound it further."""

    worst: float  # largest difference, relative to the largest expected number (at least 1)
    differing_greedy: int = 0  # greedy tokens that differ, all of them near ties
    differing_selections: int = 0  # queries or tokens that chose another set; an assertion has already failed unless 0


def assert_close(actual: Tensor, expected: Tensor, what: str = "values", dtype: torch.dtype | None = None) -> Report:
    """Every number within the bound of `dtype` (by default the less precise of the two); NaN is never close."""
    assert actual.shape == expected.shape, f"{what}: shapes {tuple(actual.shape)} and {tuple(expected.shape)}"
    if not actual.numel():
        return Report(0.0)
    bound = RELATIVE[dtype] if dtype else max(RELATIVE[actual.dtype], RELATIVE[expected.dtype])
    a, e = actual.detach().double().cpu(), expected.detach().double().cpu()
    same = a == e  # equal infinities too, such as masked scores
    scale = max(1.0, e[e.isfinite()].abs().max().item() if e.isfinite().any() else 1.0)
    off = torch.where(same, 0.0, (a - e).abs() / scale).nan_to_num(nan=torch.inf)
    worst = off.max().item()
    if worst > bound:
        place = tuple(int(i) for i in torch.unravel_index(off.argmax(), off.shape))
        both = f"{a[place].item():.6g} instead of {e[place].item():.6g}"
        count = int((off > bound).sum())
        raise AssertionError(f"{what}: {count} of {a.numel()} are off, worst {both} at {place} ({worst:.2e} > {bound:.0e})")
    return Report(worst)


def assert_same_greedy(actual: Tensor, expected: Tensor, what: str = "logits") -> Report:
    """Logits [..., V]: the greedy token is the same wherever the expected best one leads by more than 1e-3."""
    report = assert_close(actual, expected, what)
    rows = expected.detach().flatten(0, -2).cpu()
    chosen, best = actual.detach().flatten(0, -2).cpu().argmax(-1), rows.argmax(-1)
    lead = rows.gather(-1, best[:, None]) - rows.gather(-1, chosen[:, None])
    wrong = (lead[:, 0] > NEAR_TIE).nonzero().flatten().tolist()
    assert not wrong, f"{what}: {len(wrong)} greedy tokens differ beyond near ties, the first at row {wrong[0]}"
    return Report(report.worst, differing_greedy=int((chosen != best).sum()))


def assert_same_tokens(actual: Sequence[int], expected: Sequence[int], logits: Tensor, what: str = "tokens") -> None:
    """Greedy runs: logits [T, V] are those that `expected` came from; after a near tie the runs may go separate ways."""
    for place, (mine, theirs) in enumerate(zip(actual, expected, strict=False)):
        if mine != theirs:
            lead = (logits[place, theirs] - logits[place, mine]).item()
            assert lead <= NEAR_TIE, f"{what}: token {place} is {mine} instead of {theirs}, which leads by {lead:.2e}"
            return
    assert len(actual) == len(expected), f"{what}: {len(actual)} tokens instead of {len(expected)}"


def assert_same_selection(actual: Tensor, expected: Tensor, what: str = "selection") -> Report:
    """Sets chosen in each row: bool masks [..., K], or ids [..., k] in any order (negative: nothing chosen)."""
    assert actual.dtype.is_floating_point is expected.dtype.is_floating_point is False, f"{what}: not ids or masks"
    if actual.dtype != torch.bool:
        actual, expected = _ascending(actual), _ascending(expected)
    assert actual.shape == expected.shape, f"{what}: shapes {tuple(actual.shape)} and {tuple(expected.shape)}"
    rows = (actual.cpu() != expected.cpu()).any(-1).flatten()
    differing = int(rows.sum())
    where = f", the first in row {int(rows.nonzero()[0])}" if differing else ""
    assert differing == 0, f"{what}: {differing} of {rows.numel()} selections differ{where}"
    return Report(0.0, differing_selections=differing)


def _ascending(ids: Tensor) -> Tensor:
    return ids.clamp(min=-1).sort(-1).values
