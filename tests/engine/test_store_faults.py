"""The prefix store's disk under real processes: killed while they write, and several on one folder."""

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from fourfold.engine.store import PrefixStore
from tests.engine.paging import MODEL, found

BYTES = 30_000  # of a page: several writes of the system's
BUDGET = 40 * BYTES

# Keeps and finds prompts of up to ten pages that share beginnings, for ever or `most` times; a wrong page ends it with an error.
WRITER = f"""
import random, sys
from pathlib import Path
from fourfold.engine.store import PrefixStore
from tests.engine.paging import MODEL, found, keep

folder, seed, most = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
draw, store = random.Random(seed), PrefixStore(MODEL, memory=0, folder=folder, disk={BUDGET}, page=2)
print("ready", flush=True)
while most:
    text = [draw.randrange(2) for _ in range(draw.randrange(2, 20))]
    found(store, "", text, bytes_={BYTES})
    keep(store, "", text, bytes_={BYTES})
    most -= 1
store.close()
"""


def start(folder: Path, seed: int, most: int = -1) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", WRITER, str(folder), str(seed), str(most)], stdout=subprocess.PIPE)


def check(folder: Path, seed: int) -> int:
    """Tokens found of random prompts; every page right, and none of what is there damaged: a file is whole or not there."""
    draw, store, tokens = random.Random(seed), PrefixStore(MODEL, memory=0, folder=folder, disk=BUDGET, page=2), 0
    assert sum(path.stat().st_size for path in folder.glob("??/[0-9a-f]*")) <= BUDGET + BYTES
    for _ in range(60):
        tokens += found(store, "", [draw.randrange(2) for _ in range(20)], bytes_=BYTES)
    assert "corrupt" not in store.stats().misses
    return tokens


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.slow)])
def test_killed_while_writing(kills: int, tmp_path: Path) -> None:
    draw, tokens = random.Random(0), 0
    for seed in range(kills):
        with start(tmp_path, seed) as writer:
            assert writer.stdout.readline() == b"ready\n"
            time.sleep(draw.random() * 0.2)
            assert writer.poll() is None, "the writer found a wrong page"
            writer.send_signal(signal.SIGKILL)
        tokens += check(tmp_path, seed)
    assert tokens


def test_two_processes_on_one_folder(tmp_path: Path) -> None:
    writers = [start(tmp_path, seed, most=60) for seed in (1, 2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    for writer in writers:
        writer.stdout.close()
    assert check(tmp_path, 3)
