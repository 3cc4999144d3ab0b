"""Many prompts at once, each as it would go alone: replies, answers as text, and drawings of one size."""

from collections.abc import Collection
from collections.abc import Sequence as Listed
from dataclasses import replace

import torch
from torch import Tensor

from fourfold.engine.canvas import CODES, GUIDANCE, Canvas, check_guidance, unasked
from fourfold.engine.generate import end_tokens
from fourfold.engine.grammar import forbidden, without
from fourfold.engine.layout import Grid, Layout, check_grid, layout_of
from fourfold.engine.sampler import Sampling, sample
from fourfold.engine.sequence import PREFILL, Prompt, Sequence, advance, span_of
from fourfold.errors import ConfigError
from fourfold.media import spans
from fourfold.model.state import Cache
from fourfold.model.transformer import Transformer

GREEDY = Sampling(temperature=0)

Draw = tuple[Sampling, torch.Generator | None]  # how the tokens of one sequence are chosen


def answer(
    model: Transformer, prompts: Listed[Prompt], max_tokens: int, sampling: Sampling = GREEDY, at_once: int = 32
) -> list[str]:
    """The text that the model says to each prompt, up to the end of its turn or `max_tokens`; it draws nothing.

    `at_once` prompts share a batch, those of like lengths; the answers do not depend on it. With a seed, prompt i is answered as
    alone with seed + i. Only how `sampling` chooses counts. Raises ConfigError as `replies` does.
    """
    ends, said = end_tokens(model, model.tokenizer), [""] * len(prompts)
    places = sorted(range(len(prompts)), key=lambda place: len(prompts[place]))
    for start in range(0, len(places), at_once):
        chosen = places[start : start + at_once]
        draws = [_seeded(sampling, place) for place in chosen]
        found = replies(model, [prompts[place] for place in chosen], ends, max_tokens, draws=draws)
        for place, ids in zip(chosen, found, strict=True):
            said[place] = model.tokenizer.decode(ids)
    return said


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
    check_guidance(guidance)
    _check_room(model, max(map(len, prompts), default=0), len(layout))
    draws = [_seeded(sampling, place) for place in range(len(prompts))]
    groups = [slice(start, start + at_once) for start in range(0, len(prompts), at_once)]
    drawn = [_drawn(model, prompts[group], layout, guidance, draws[group]) for group in groups]
    return torch.cat([layout.span.tokens.new_zeros(0, *grid), *drawn])


def _drawn(model: Transformer, prompts: Listed[Prompt], layout: Layout, guidance: float, draws: Listed[Draw]) -> Tensor:
    """Codes int64 [n, *grid] after each prompt, in one batch."""
    opening = layout.span.cut(0, layout.opening)
    opened = [spans.join([span_of(prompt), opening]) for prompt in prompts]
    twins = [spans.join([unasked(model.tokenizer), opening])] * len(prompts) if guidance != 1 else []
    cache = model.new_cache(len(opened) + len(twins))
    with torch.inference_mode():
        hidden = advance(model, cache, model.batch([*opened, *twins]))
    canvas = Canvas(model, cache, layout, list(map(len, prompts)), layout.span.tokens.repeat(len(prompts), 1), guidance)
    for _ in canvas.strokes(hidden, layout.opening, lambda logits: _choose(logits, draws)):
        pass
    return canvas.codes()


@torch.inference_mode()
def replies(
    model: Transformer,
    prompts: Listed[Prompt],
    ends: Collection[int],
    max_tokens: int,
    selection: str = "sparse",
    cache: Cache | None = None,
    draws: Listed[Draw] | None = None,
) -> list[list[int]]:
    """The tokens of text after each prompt, up to (without) one of `ends` or `max_tokens`: the likeliest, or as `draws` say.

    `cache` has one sequence per prompt, which the prompt goes on from; it is used up. Raises ConfigError when a prompt and its
    reply do not fit the model's positions.
    """
    cache = cache or model.new_cache(len(prompts))
    fresh = [span_of(prompt, past) for past, prompt in zip(cache.lengths, prompts, strict=True)]
    _check_room(model, max(past + len(span) for past, span in zip(cache.lengths, fresh, strict=True)), max_tokens - 1)
    draws = draws or [(GREEDY, None)] * len(prompts)
    never = forbidden(model.config, model.tokenizer, []) if model.config.has_media else []
    said: list[list[int]] = [[] for _ in prompts]
    open_ = list(range(len(prompts)))
    for step in range(max_tokens):
        hidden = advance(model, cache, model.batch(fresh), selection)
        chosen = _choose(without(model.logits(hidden), never), [draws[place] for place in open_])
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


def _seeded(sampling: Sampling, place: int) -> Draw:
    own = sampling if sampling.seed is None else replace(sampling, seed=sampling.seed + place)
    return own, own.generator()


def _choose(logits: Tensor, draws: Listed[Draw]) -> list[int]:
    """A token for each row of logits [n, V]."""
    return [sample(row, *draw) for row, draw in zip(logits, draws, strict=True)]


def _check_room(model: Transformer, longest: int, more: int) -> None:
    if longest + more > (most := model.config.max_position_embeddings):
        raise ConfigError(f"{longest} tokens and {more} more exceed the {most} positions of the model; shorten the prompt")
