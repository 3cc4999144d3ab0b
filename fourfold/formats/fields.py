"""Fields of published config.json files: what is needed, what has only some values we can honour, and what a format cannot say.

Our parts carry the published names, so that most fields pass through unchanged in both directions.
"""

from collections.abc import Collection
from typing import Any, TypeVar

from fourfold.config import PARTS, ModelConfig, Part
from fourfold.errors import ConfigError

Published = dict[str, Any]  # the contents of a config.json
T = TypeVar("T", int, list, dict)
KINDS = {int: "a whole number", list: "a list", dict: "an object"}

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size", "max_position_embeddings")
HABITS = ("rms_norm_eps", "initializer_range", "tie_word_embeddings")
TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


def need(published: Published, *names: str) -> dict[str, int]:
    """The sizes `names`. Raises ConfigError naming the first that is missing, null or no size."""
    for name in names:
        value = published.get(name)
        if value is None:
            raise ConfigError(f"{name} is missing; copy the published config.json again")
        if type(value) is not int or value < 1:
            raise ConfigError(f"{name} is {value!r}; it must be a whole number above 0")
    return {name: published[name] for name in names}


def given(published: Published, *names: str) -> Published:
    """Those of the fields `names` that are there and not null; for the others our own default is the published one."""
    return {name: published[name] for name in names if published.get(name) is not None}


def typed(published: Published, name: str, kind: type[T]) -> T:
    """The field's value, 0 or an empty one when it is null or left out. Raises ConfigError when it is of another kind."""
    value = published.get(name)
    if value is not None and type(value) is not kind:
        raise ConfigError(f"{name} is {value!r}; it must be {KINDS[kind]}")
    return kind() if value is None else value


def number(published: Published, name: str) -> float | None:
    """The field's value, None when it is null or left out. Raises ConfigError when it is no number."""
    value = published.get(name)
    if value is not None and not isinstance(value, int | float):
        raise ConfigError(f"{name} is {value!r}; it must be a number")
    return value


def only(published: Published, name: str, *values: Any) -> Any:
    """The field's value, by default the first of `values`. Raises ConfigError when it is none of them."""
    value = published.get(name)
    if value is not None and value not in values:
        raise ConfigError(f"{name} is {value!r}, which cannot be honoured; it may be {' or '.join(map(repr, values))}")
    return values[0] if value is None else value


def read_trunk(published: Published) -> Published:
    """What the config of every decoder says beside its attention and experts."""
    only(published, "hidden_act", "silu", "swish")
    only(published, "mlp_bias", False)
    tokens = {name: _token(published.get(name)) for name in TOKENS}
    return need(published, *SIZES) | given(published, *HABITS) | tokens


def write_trunk(config: ModelConfig) -> Published:
    """The inverse of `read_trunk`."""
    return {name: getattr(config, name) for name in (*SIZES, *HABITS, *TOKENS)} | {"hidden_act": "silu"}


def check_words(config: ModelConfig, model_type: str, **words: Collection[str]) -> None:
    """`words`: for each part that a format can describe the fields that it has words for, `trunk` for those beside the parts.

    Raises ConfigError naming a part, or a field away from its default, that would be lost on writing.
    """
    for name in PARTS:
        part = getattr(config, name)
        if part is not None and name not in words:
            raise ConfigError(f"{name}: {model_type} has no words for this part; save the model in Fourfold's own format")
        if part is None and name in words:
            raise ConfigError(f"{name}: {model_type} cannot do without this part; save the model in Fourfold's own format")
    _check_defaults(config, {*words.get("trunk", ()), *SIZES, *HABITS, *TOKENS, *PARTS}, model_type)
    for name in words.keys() & PARTS.keys():
        _check_defaults(getattr(config, name), words[name], model_type)


def _check_defaults(part: Part, known: Collection[str], model_type: str) -> None:
    for name, field in type(part).model_fields.items():
        value = getattr(part, name)
        if name not in known and value != field.default:
            raise ConfigError(f"{name} is {value}, for which {model_type} has no words; save the model in Fourfold's own format")


def _token(value: Any) -> int | None:
    """Several end tokens: the first (the tokenizer knows the others). A negative one, as in old Llama files, is none."""
    first = value[0] if isinstance(value, list) and value else value
    return None if first == [] or (isinstance(first, int) and first < 0) else first
