"""What every test stands on: one thread, no network, a home of its own, and hypothesis without a clock."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

from fourfold.formats.ours import save
from fourfold.model.transformer import Transformer
from fourfold.presets import preset
from fourfold.text.tokenizer import Tokenizer

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")
torch.set_num_threads(1)
# On two busy cores time says nothing about a test; in CI the same examples every time.
quiet = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
settings.register_profile("default", deadline=None, max_examples=40, suppress_health_check=quiet)
settings.register_profile("ci", settings.get_profile("default"), derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True, scope="session")
def fourfold_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """`$FOURFOLD_HOME` in a scratch place for the whole run, so that no test reads or writes the user's."""
    home = tmp_path_factory.mktemp("fourfold-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FOURFOLD_HOME", str(home))
        yield home


@pytest.fixture(autouse=True)
def seeded() -> None:
    """Every test starts from the same random state."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A small byte-level tokenizer, the same in every run."""
    return Tokenizer.train(["the cat sat on the mat and the dog ran off. " * 20, "Grüße aus Köln, 漢字 und 🙂 dazu. " * 5], 400)


@pytest.fixture(scope="session")
def tiny(tokenizer: Tokenizer) -> Transformer:
    """All parts of the architecture at a size that runs in milliseconds, with random weights; not to be changed."""
    classes, count = tokenizer.compression()
    config = preset("debug").but(vocab_size=tokenizer.vocab_size, max_position_embeddings=96)
    config = config.but(memory=config.memory.but(engram_compressed_vocab_size=count), initializer_range=0.1)
    return Transformer(config, classes).init_weights(7).eval()


@pytest.fixture(scope="session")
def checkpoint(tiny: Transformer, tokenizer: Tokenizer, fourfold_home: Path) -> Path:
    """The tiny model as a folder that is found by the name `tiny`; not to be changed."""
    return save(tiny, fourfold_home / "models" / "tiny", tokenizer)
