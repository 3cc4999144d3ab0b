"""How one answer's tokens are chosen, step by step: its settings, its source of draws, its counts and its constraint together."""

from collections.abc import Iterable

from torch import Tensor

from fourfold.engine.constraint import Constraint
from fourfold.engine.penalties import Penalties
from fourfold.engine.sampler import Sampling, sample


class Chooser:
    """Chooses the tokens of one answer.

        chooser = Chooser(sampling, vocab_size, constraint, prompt_tokens)
        while ...:
            token = chooser.choose(logits)      # penalties, then the constraint, then the draw; nothing is remembered yet
            chooser.take(token)                 # for every token of the answer, also one that came in another way
            for token in chooser.forced(): ...  # tokens that must come next, so that no draw is needed (take each)

    A guessed token is verified by choosing at its place and comparing; the chooser never has to go back. logits are [V] of the
    model's vocabulary, any float type and device, -inf where something else (a drawing's grammar) rules a token out; they are not
    changed. `generator` also draws the codes of drawings. prompt: token ids of its text, for repetition_penalty only.

    Raises ConfigError for a logit_bias outside the vocabulary, and FourfoldError from `choose` where nothing can come next.
    """

    def __init__(
        self, sampling: Sampling, vocab_size: int, constraint: Constraint | None = None, prompt: Iterable[int] = ()
    ) -> None:
        self.sampling, self.constraint = sampling, constraint
        self.generator = sampling.generator()
        self.penalties = Penalties(sampling, vocab_size, prompt)

    def choose(self, logits: Tensor) -> int:
        """The next token. Call it once for each place: it draws."""
        logits = self.penalties.apply(logits.detach().float().cpu())
        if self.constraint is not None:
            logits = self.constraint.mask(logits)
        return sample(logits, self.sampling, self.generator)

    def take(self, token: int) -> None:
        """A token of the vocabulary has come."""
        self.penalties.take(token)
        if self.constraint is not None:
            self.constraint.take(token)

    def forced(self) -> list[int]:
        """The tokens that must come next whatever the model says; mostly none. Nothing is remembered: take each of them."""
        return [] if self.constraint is None else self.constraint.forced()
