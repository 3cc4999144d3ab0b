"""What an omni model reads, hears, draws and films, on held-out media: each figure with its count, chance level and baseline."""

from fourfold.evals.omni.suite import KEYS, run

__all__ = ["KEYS", "run"]
