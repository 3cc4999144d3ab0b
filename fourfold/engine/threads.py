"""How many threads a forward is worth.

Reading a prompt is a few large matrix products, and gains from every core. A step of decoding is many small ones, after each of
which the threads wait for the slowest; and where another process holds one of their cores, every such wait lasts until it lets go,
so that two threads can be many times slower than one. A forward therefore takes a further thread only for work that pays for it.
"""

import torch

from fourfold.model.transformer import Transformer
from fourfold.planner.count import count

WORTH = 50_000_000  # multiply-adds that a thread should find in a forward: an estimate, see experiments/serving/threads.py


class Threads:
    """The policy for one model: at most as many threads as torch has where this is made, which is up to the user."""

    def __init__(self, model: Transformer) -> None:
        self.most = torch.get_num_threads()
        self._work = count(model.config).active if self.most > 1 else 0  # multiply-adds for one token

    def suit(self, tokens: int) -> None:
        """Set the calling thread's number of threads for a forward over so many tokens."""
        if self.most > 1 and torch.get_num_threads() != (wanted := self.worth(tokens)):
            torch.set_num_threads(wanted)

    def worth(self, tokens: int) -> int:
        return max(1, min(self.most, tokens * self._work // WORTH))
