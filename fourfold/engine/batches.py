"""Many prompts at once, each as it would go alone: replies, answers as text, and drawings of one size."""

from collections.abc import Collection
from collections.abc import Sequence as Listed
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fourfold.engine.canvas import CODES, GUIDANCE, Drawing
from fourfold.engine.engine import Engine
from fourfold.engine.grammar import forbidden, without
from fourfold.engine.layout import Grid, check_grid, layout_of
from fourfold.engine.request import Answer, Request
from fourfold.engine.sampler import Sampling, sample
from fourfold.engine.sequence import PREFILL, Prompt, Sequence, advance, span_of
from fourfold.errors import ConfigError
from fourfold.media import spans
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer

GREEDY = Sampling(temperature=0)


def answer(
    model: Transformer, prompts: Listed[Prompt], max_tokens: int, sampling: Sampling = GREEDY, at_once: int = 32
) -> list[str]:
    """The text that the model says to each prompt, up to the end of its turn or `max_tokens`; it draws nothing.

    `at_once` answers are made together; they do not depend on it. With a seed, prompt i is answered as alone with seed + i. Only
    how `sampling` chooses counts. Raises ConfigError when a prompt and its answer do not fit the model's positions.
    """
    _check_room(model, max(map(len, prompts), default=0), max_tokens - 1)
    own = [_seeded(sampling, place, max_tokens=max_tokens, stop=()) for place in range(len(prompts))]
    nothing = Drawing(begin=False)
    return [said.text for said in _made(model, [Request(p, s, nothing) for p, s in zip(prompts, own, strict=True)], at_once)]


def draw(
    model: Transformer,
    prompts: Listed[Prompt],
    grid: Grid,
    sampling: Sampling = CODES,
    guidance: float = GUIDANCE,
    at_once: int = 32,
) -> Tensor:
    """What the model draws after each prompt (which ends where the assistant begins): codes int64 [n, *grid].

    A grid of rows and columns is a picture, one of frames, rows and columns a clip. `at_once` and seeds as in `answer`. Raises
    ConfigError for a grid that is none, or a prompt after which it does not fit.
    """
    layout = layout_of(check_grid(grid), model.tokenizer)
    drawing = Drawing(codes=sampling, guidance=guidance, pixels=False)
    _check_room(model, max(map(len, prompts), default=0), len(layout))
    opening = layout.span.cut(0, layout.opening)
    own = [_seeded(sampling, place, max_tokens=len(layout) - layout.opening) for place in range(len(prompts))]
    requests = [Request(spans.join([span_of(p), opening]), s, drawing) for p, s in zip(prompts, own, strict=True)]
    drawn = [made.drawings[0] for made in _made(model, requests, at_once)]
    return torch.stack(drawn) if drawn else layout.span.tokens.new_zeros(0, *grid)


def _made(model: Transformer, requests: Listed[Request], at_once: int) -> list[Answer]:
    """The answers, those to prompts of like lengths together."""
    order = sorted(range(len(requests)), key=lambda place: len(requests[place].prompt))
    with Engine(model, most_running=at_once, threaded=False) as engine:
        made = dict(zip(order, engine.generate([requests[place] for place in order]), strict=True))
    return [made[place] for place in range(len(requests))]


@torch.inference_mode()
def replies(
    model: Transformer,
    prompts: Listed[Prompt],
    ends: Collection[int],
    max_tokens: int,
    selection: str = "sparse",
    cache: Cache | None = None,
) -> list[list[int]]:
    """The likeliest tokens of text after each prompt, up to (without) one of `ends` or `max_tokens`.

    `cache` has one sequence per prompt, which the prompt goes on from; it is used up. Raises ConfigError when a prompt and its
    reply do not fit the model's positions.
    """
    cache = cache or model.new_cache(len(prompts))
    fresh = [span_of(prompt, past) for past, prompt in zip(cache.lengths, prompts, strict=True)]
    _check_room(model, max(past + len(span) for past, span in zip(cache.lengths, fresh, strict=True)), max_tokens - 1)
    never = forbidden(model.config, model.tokenizer, []) if model.config.has_media else []
    said: list[list[int]] = [[] for _ in prompts]
    open_ = list(range(len(prompts)))
    for step in range(max_tokens):
        hidden = advance(model, cache, model.batch(fresh), selection)
        chosen = [sample(row, GREEDY) for row in without(model.logits(hidden), never)]
        going = [row for row, token in enumerate(chosen) if token not in ends]
        for row in going:
            said[open_[row]].append(chosen[row])
        if not going or step == max_tokens - 1:
            break
        if len(going) < len(open_):
            cache, open_ = cache.fork(going), [open_[row] for row in going]
        fresh = [span_of([chosen[row]], past) for row, past in zip(going, cache.lengths, strict=True)]
    return said


def prefill(model: Transformer, ids: Prompt, selection: str = "sparse", chunk: int = PREFILL) -> Cache:
    """A cache of one sequence that has seen a prompt, read `chunk` at a time."""
    sequence = Sequence(model)
    sequence.read(ids, chunk, selection)
    return sequence.cache


def _seeded(sampling: Sampling, place: int, **settings: Any) -> Sampling:
    """The settings of prompt number `place`."""
    return replace(sampling, seed=None if sampling.seed is None else sampling.seed + place, **settings)


def _check_room(model: Transformer, longest: int, more: int) -> None:
    if longest + more > (most := model.config.max_position_embeddings):
        raise ConfigError(f"{longest} tokens and {more} more exceed the {most} positions of the model; shorten the prompt")
