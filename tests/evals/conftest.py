"""What the evals are tried on."""

import pytest

from fourfold.data.corpus import Corpus
from fourfold.model.transformer import Transformer
from fourfold.text.tokenizer import Tokenizer
from tests.evals.small import make_corpus, make_model


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Corpus:
    return make_corpus(tmp_path_factory.mktemp("corpora") / "small", tokenizer)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Transformer:
    """Not to be changed."""
    return make_model(tokenizer)
