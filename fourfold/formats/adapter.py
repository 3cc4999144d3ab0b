"""What a published format is to us: its config.json read as a ModelConfig, and a place in our model for each of its tensors.

An adapter is a table of names and a few reshapes. The same table serves both ways: reading puts each published tensor into its
place, writing takes each place out again. Nothing in `model/` knows about formats.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fourfold.config import ModelConfig


def same(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Place:
    """Where a published tensor goes: `part` (leading indices) of the tensor `name` of our state dict.

    `ours` turns the published tensor into that part, `theirs` turns it back. A `copy` is written for those who expect the tensor,
    but not read, because another place holds the same values (V3's second embedding and head).
    """

    name: str
    part: tuple[int | slice, ...] = ()
    ours: Callable[[Tensor], Tensor] = same
    theirs: Callable[[Tensor], Tensor] = same
    copy: bool = False


class Adapter(ABC):
    """One published format."""

    model_type: str  # of config.json
    architecture: str  # the class name that config.json gives

    @abstractmethod
    def config(self, published: dict[str, Any]) -> ModelConfig:
        """The model that a published config.json means. Raises ConfigError naming a field that we cannot honour."""

    @abstractmethod
    def published(self, config: ModelConfig) -> dict[str, Any]:
        """The config.json of a model, without `model_type`, `architectures` and dtype.

        Raises ConfigError naming the part of the model that this format has no words for.
        """

    @abstractmethod
    def places(self, config: ModelConfig, names: Collection[str] = ()) -> dict[str, Place]:
        """Published name -> place, for every tensor of a checkpoint. Formats with two sets of names choose by those in `names`."""

    def fitted(self, config: ModelConfig, names: Collection[str]) -> ModelConfig:
        """The config without optional parts whose tensors are not among the `names` stored: savers drop multi-token prediction."""
        return config

    def ignores(self, name: str, published: dict[str, Any]) -> bool:
        """Whether a stored tensor that has no place may be left unread: it follows from the config (rotary tables), or lies beside
        the model. `published`: config.json.
        """
        return name.endswith("rotary_emb.inv_freq")
