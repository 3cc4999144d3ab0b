"""Log-probabilities beside tokens: of the model's own distribution, before temperature, penalties and constraints."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fourfold.engine.request import Chosen


def chosen(logits: Tensor, token: int, top: int = 0) -> Chosen:
    """What logits [V] say of the token that came, and of the `top` likeliest, equal ones by lower id."""
    return prompt_chosen(logits[None], [token], top)[0]


def prompt_chosen(logits: Tensor, tokens: Tensor | Sequence[int], top: int = 0) -> list[Chosen]:
    """`chosen` at each of N places: logits [N, V], and the tokens [N] that came there.

    It takes a copy of the logits; give those of a long prompt a few rows at a time.
    """
    logprobs = logits.detach().float().log_softmax(-1)
    tokens = torch.as_tensor(tokens, device=logits.device)
    own = logprobs.gather(-1, tokens[:, None])[:, 0].tolist()
    best = _likeliest(logprobs, min(top, logits.shape[-1])) if top else [()] * len(own)
    return [Chosen(token, logprob, row) for token, logprob, row in zip(tokens.tolist(), own, best, strict=True)]


def _likeliest(logprobs: Tensor, top: int) -> list[tuple[tuple[int, float], ...]]:
    """Ids and values of the `top` largest of each row [N, V]; among equal ones topk itself chooses at will."""
    found = []
    for row, least in zip(logprobs, logprobs.topk(top, -1).values[:, -1], strict=True):
        ids = (row >= least).nonzero()[:, 0]
        values, order = row[ids].sort(descending=True, stable=True)
        found.append(tuple(zip(ids[order[:top]].tolist(), values[:top].tolist(), strict=True)))
    return found
