"""Recipes by name. How one is written down, read back and changed is in settings.py."""

from collections.abc import Callable
from functools import partial

from fourfold.errors import ConfigError
from fourfold.training import omni_recipes as omni
from fourfold.training import text_recipes as text
from fourfold.training.omni_recipes import MICRO_ROWS
from fourfold.training.recipe import Recipe, Stage
from fourfold.training.settings import from_dict, override, to_dict

__all__ = ["RECIPES", "Recipe", "Stage", "from_dict", "override", "recipe", "to_dict"]

RECIPES: dict[str, Callable[[], Recipe]] = {
    "debug": text.debug,
    "micro": text.micro,
    "nano": text.nano,
    "nano-long": text.nano_long,
    "nano-anneal": text.nano_anneal,
    "nano-dense": text.nano_dense,
    "debug-omni": omni.debug_omni,
    "nano-omni": omni.nano_omni,
    "nano-omni-late": omni.nano_omni_late,
    "micro-omni": omni.micro_omni,
    "micro-omni-late": omni.micro_omni_late,
    **{f"micro-omni-{kind}": partial(omni.micro_omni, kind) for kind in MICRO_ROWS},
    "nano-omni-joined": omni.nano_omni_joined,
    "nano-omni-anneal": omni.nano_omni_anneal,
    "nano-omni-placed": omni.nano_omni_placed,
    "nano-omni-moving": omni.nano_omni_moving,
    "nano-omni-ways": omni.nano_omni_ways,
    "nano-omni-blended": omni.nano_omni_blended,
}


def recipe(name: str) -> Recipe:
    """A recipe by name. Raises ConfigError naming those that exist."""
    if name not in RECIPES:
        raise ConfigError(f"recipe {name!r} is not known; choose one of {', '.join((*RECIPES, 'codec'))}")
    return RECIPES[name]()
