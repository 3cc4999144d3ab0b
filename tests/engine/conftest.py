"""What the engine's tests draw with."""

import pytest

from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests.omni import make_omni


@pytest.fixture(scope="session")
def omni(tokenizer: Tokenizer) -> Transformer:
    """Reads and draws; random weights; not to be changed."""
    return make_omni(tokenizer)
