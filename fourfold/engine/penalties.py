"""Penalties on tokens that were there before, over counts that grow with the answer, and the bias that a caller gives."""

from collections.abc import Iterable

import torch
from torch import Tensor

from fourfold.engine.sampler import Sampling
from fourfold.errors import ConfigError


class Penalties:
    """What is done to the logits of one answer before a token is drawn. Its cost does not grow with the length of the answer.

    repetition_penalty looks at the prompt too, the others at what was generated, as other engines have it. Raises ConfigError for a
    bias on an id that is not in the vocabulary.
    """

    def __init__(self, sampling: Sampling, vocab_size: int, prompt: Iterable[int] = ()) -> None:
        self.sampling = sampling
        self._adds = bool(sampling.frequency_penalty or sampling.presence_penalty or sampling.logit_bias)
        self._repeats = sampling.repetition_penalty != 1
        self.idle = not (self._adds or self._repeats)
        if (most := max(sampling.logit_bias, default=0)) >= vocab_size:
            raise ConfigError(f"logit_bias: {most} is no token; ids end at {vocab_size - 1}")
        if self._adds:
            self._added = torch.zeros(vocab_size)  # to each logit: bias, less penalties
            for token, bias in sampling.logit_bias.items():
                self._added[token] = bias
            self._seen = torch.zeros(vocab_size, dtype=torch.bool)  # generated
        if self._repeats:
            self._known = torch.zeros(vocab_size, dtype=torch.bool)  # generated, or in the prompt
            self._known[torch.as_tensor(list(prompt), dtype=torch.long)] = True

    def take(self, token: int) -> None:
        """A token has been generated."""
        if self._adds:
            once = 0.0 if self._seen[token] else self.sampling.presence_penalty
            self._added[token] -= self.sampling.frequency_penalty + once
            self._seen[token] = True
        if self._repeats:
            self._known[token] = True

    def apply(self, logits: Tensor) -> Tensor:
        """Logits fp32 [V] on the CPU, penalised; the same tensor where nothing is asked for."""
        if self._repeats:
            penalty = self.sampling.repetition_penalty
            logits = torch.where(self._known, torch.where(logits > 0, logits / penalty, logits * penalty), logits)
        return logits + self._added if self._adds else logits
