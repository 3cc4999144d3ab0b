"""A model that knows nothing, under a constraint: random logits that lean more and more towards what closes things."""

import torch

from fourfold.engine.chooser import Chooser
from fourfold.engine.constraint import Constraint
from fourfold.engine.sampler import Sampling
from fourfold.text.tokenizer import Tokenizer

CLOSING = (b'"', b"}", b"]", b"</", b"<", b"/", b",")


def ramble(constraint: Constraint, tokenizer: Tokenizer, seed: int, most: int = 300, liked: tuple[str, ...] = ()) -> list[int]:
    """The tokens it says, the one that ends the answer left out. liked: control tokens that it comes to like as well.

    Tokens that must come are now and then taken without asking it, as the engine does.
    """
    generator, size = torch.Generator().manual_seed(seed), tokenizer.vocab_size
    closing = [id for id in range(size) if tokenizer.bytes_of(id, False) in CLOSING] + [tokenizer.special(mark) for mark in liked]
    lean = torch.zeros(size)
    lean[closing], lean[list(tokenizer.ends)] = 0.15, 0.2
    chooser, said = Chooser(Sampling(1.0, seed=seed), size, constraint), list[int]()
    for place in range(most):
        token = chooser.choose(torch.randn(size, generator=generator) + place * lean)
        may_end = constraint.may_end
        chooser.take(token)
        if token in tokenizer.ends:
            assert may_end
            return said
        said.append(token)
        for forced in chooser.forced() if place % 3 == 0 else []:
            assert torch.isfinite(constraint.mask(torch.zeros(size))[forced])
            chooser.take(forced)
            said.append(forced)
    raise AssertionError(f"no end after {most} tokens: {tokenizer.decode(said, False)!r}")
