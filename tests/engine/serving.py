"""Models of every kind of attention for the engine's tests, and what each request gives alone."""

from functools import cache

import torch

from fourfold.engine.generate import generate
from fourfold.engine.request import Answer, Request
from fourfold.engine.sampler import Sampling
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests import builders
from tests.model import compressing
from tests.omni import make_omni

CONFIGS = {
    "latent": builders.everything,  # MLA, indexer, Engram, streams, multi-token prediction
    "grouped": builders.grouped,
    "llama": builders.base,
    "compressed": compressing.small,  # CSA and HCA with blocks of 3 and 7
    "released": compressing.released,  # CSA and HCA with blocks of 4 and 128
}
KINDS = [*CONFIGS, "omni"]
GREEDY = Sampling(temperature=0, seed=1, max_tokens=10)


@cache
def served(kind: str, tokenizer: Tokenizer) -> Transformer:
    """A small model with random weights, not to be changed."""
    if kind == "omni":
        return make_omni(tokenizer)
    model = builders.build(CONFIGS[kind]().but(vocab_size=tokenizer.vocab_size))
    model.tokenizer = tokenizer
    return model


def words(count: int, seed: int = 0) -> list[int]:
    """Tokens of text, few of them often."""
    return (builders.random_tokens(count, seed=seed) + 40).tolist()


_known: dict[tuple[object, ...], tuple[list[int], str, str | None, list[list[int]]]] = {}


def alone(model: Transformer, request: Request) -> tuple[list[int], str, str | None, list[list[int]]]:
    """Tokens, text, finish reason and drawings of a request on its own."""
    if isinstance(request.prompt, list):  # asked for often
        key = id(model), tuple(request.prompt), str(request.sampling)
        return _known[key] if key in _known else _known.setdefault(key, _alone(model, request))
    return _alone(model, request)


def _alone(model: Transformer, request: Request) -> tuple[list[int], str, str | None, list[list[int]]]:
    pieces = list(generate(model, request.prompt, request.sampling, model.tokenizer, drawing=request.drawing))
    tokens = [token for piece in pieces for token in piece.tokens]
    drawn = [piece.drawing.codes.tolist() for piece in pieces if hasattr(piece.drawing, "pixels")]
    return tokens, "".join(piece.text for piece in pieces), pieces[-1].finish_reason, drawn


def told(answer: Answer) -> tuple[list[int], str, str | None, list[list[int]]]:
    """The same of an answer of the engine's."""
    return answer.tokens, answer.text, answer.finish_reason, [codes.tolist() for codes in answer.drawings]


def plain_logits(model: Transformer, tokens: list[int]) -> torch.Tensor:
    """[n, V] of one full forward."""
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0]
