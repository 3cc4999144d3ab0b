"""Greedy replies to many prompts at once: one long context read into a cache, or a batch of short prompts."""

from collections.abc import Collection, Sequence

import torch

from fourfold.engine.generate import PREFILL
from fourfold.engine.sampler import Sampling, sample
from fourfold.errors import ConfigError
from fourfold.model.inputs import Batch
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer

GREEDY = Sampling(temperature=0)


@torch.inference_mode()
def prefill(model: Transformer, ids: Sequence[int], selection: str = "sparse", chunk: int = PREFILL) -> Cache:
    """A cache of one sequence that has seen `ids`, read `chunk` at a time."""
    cache, device = model.new_cache(1), model.embed.weight.device
    for start in range(0, len(ids), chunk):
        part = torch.tensor([ids[start : start + chunk]], device=device)
        model.trunk(Batch.from_tokens(part, past=cache.lengths), cache, selection=selection)
    return cache


@torch.inference_mode()
def replies(
    model: Transformer,
    prompts: Sequence[Sequence[int]],
    ends: Collection[int],
    max_tokens: int,
    selection: str = "sparse",
    cache: Cache | None = None,
) -> list[list[int]]:
    """The likeliest tokens after each prompt, up to (without) one of `ends` or `max_tokens`.

    `cache` has one sequence per prompt, which the prompt goes on from; it is used up. Raises ConfigError when a prompt and its
    reply do not fit the model's positions.
    """
    device, cache = model.embed.weight.device, cache or model.new_cache(len(prompts))
    longest = max(past + len(prompt) for past, prompt in zip(cache.lengths, prompts, strict=True))
    if longest + max_tokens - 1 > (most := model.config.max_position_embeddings):
        raise ConfigError(
            f"{longest} tokens and a reply of {max_tokens} exceed the {most} positions of the model; shorten the prompt"
        )
    said: list[list[int]] = [[] for _ in prompts]
    open_, fresh = list(range(len(prompts))), [list(prompt) for prompt in prompts]
    for step in range(max_tokens):
        batch = Batch.ragged([torch.tensor(ids, device=device) for ids in fresh], cache.lengths)
        hidden = model.trunk(batch, cache, selection=selection)
        last = torch.tensor(batch.lengths, device=device).cumsum(0) - 1
        chosen = [sample(row, GREEDY) for row in model.logits(hidden[last])]
        going = [place for place, token in enumerate(chosen) if token not in ends]
        for place in going:
            said[open_[place]].append(chosen[place])
        if not going or step == max_tokens - 1:
            break
        if len(going) < len(open_):
            cache, open_ = cache.fork(going), [open_[place] for place in going]
        fresh = [[chosen[place]] for place in going]
    return said
