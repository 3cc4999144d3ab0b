"""The prefix store with pages that stand for themselves: what is found, what is dropped, and what becomes of damaged files."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from fourfold.engine.store import PrefixStore
from fourfold.engine.store.backlog import Backlog
from fourfold.engine.store.disk import ABANDONED
from fourfold.engine.store.pages import names
from fourfold.errors import ConfigError
from tests.engine.paging import MODEL, found, keep, page_of, pages_of

TEXT = list(range(40))
FILE = 60 + 8 + 20 + 20 + 4 + 3 * 8  # bytes of a page of 60 on disk: magic, checksum, key, count, lengths


def in_memory(pages: int = 1000) -> PrefixStore:
    return PrefixStore(MODEL, memory=60 * pages, page=4)


def on_disk(folder: Path, pages: int = 1000, memory: int = 0) -> PrefixStore:
    """As many pages as named fit before others have to go."""
    return PrefixStore(MODEL, memory=60 * memory, folder=folder, disk=(FILE * pages * 8 + 6) // 7, page=4)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


@pytest.fixture(params=["memory", "disk", "both"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PrefixStore:
    makers: dict[str, Callable[[], PrefixStore]] = {
        "memory": in_memory,
        "disk": lambda: on_disk(tmp_path),
        "both": lambda: on_disk(tmp_path, memory=1000),
    }
    return makers[request.param]()


def test_the_longest_whole_pages_are_found(store: PrefixStore) -> None:
    keep(store, "", TEXT[:23])
    for settled in (False, True):
        assert found(store, "", TEXT) == 20
        for most in range(24):
            assert found(store, "", TEXT[:23], most) == most // 4 * 4
        assert found(store, "", [*TEXT[:9], -1, *TEXT[10:]]) == 8
        assert found(store, "", TEXT[1:]) == found(store, "", TEXT[:3]) == found(store, "", []) == 0
        if not settled:
            store.close()


def test_pages_are_kept_bit_by_bit_and_once(store: PrefixStore) -> None:
    for stop in range(4, 24, 4):
        assert store.missing("", TEXT[:stop]) == stop - 4
        keep(store, "", TEXT[:stop], stop - 4)
        assert store.missing("", TEXT) == store.missing("", TEXT[: stop + 1]) == stop
    keep(store, "", TEXT[:20])
    store.close()
    stats = store.stats()
    assert {stats.memory_pages, stats.disk_pages} <= {0, 5} and stats.memory_pages + stats.disk_pages
    assert (stats.memory_bytes, stats.disk_bytes) == (60 * stats.memory_pages, FILE * stats.disk_pages)
    assert found(store, "", TEXT) == 20


def test_common_beginnings_are_shared(store: PrefixStore) -> None:
    other = [*TEXT[:10], *range(100, 130)]
    keep(store, "", TEXT)
    assert store.missing("", other) == 8
    keep(store, "", other, 8)
    store.close()
    assert found(store, "", TEXT) == found(store, "", other) == 40
    assert max(store.stats().memory_pages, store.stats().disk_pages) == 10 + 8


def test_namespaces_and_models_are_apart(store: PrefixStore, tmp_path: Path) -> None:
    keep(store, "ann", TEXT)
    store.close()
    assert [found(store, name, TEXT) for name in ("", "bob", "an", "ann\0", "ann")] == [0, 0, 0, 0, 40]
    folder = None if store.stats().disk_pages == 0 else tmp_path
    other = PrefixStore("another model", folder=folder, page=4)
    assert found(other, "ann", TEXT) == 0
    keep(other, "ann", TEXT)
    assert found(other, "ann", TEXT) == found(store, "ann", TEXT) == 40


def test_what_is_shown_is_told_from_tokens_and_from_other_pictures(store: PrefixStore) -> None:
    shown = [7, 8, (b"one", 0), (b"one", 1), (b"one", 2), (2, 5), 9, 9]
    keep(store, "", shown)
    assert found(store, "", shown) == 8
    for place, other in ((2, (b"two", 0)), (5, 5), (5, (3, 5)), (1, (0, 8))):
        assert found(store, "", [*shown[:place], other, *shown[place + 1 :]]) == place // 4 * 4


def test_each_miss_has_its_reason(tmp_path: Path) -> None:
    store = in_memory(pages=5)
    keep(store, "", TEXT[:12])

    def reason(contents: list[int]) -> str | None:
        return store.fetch("", contents, len(contents)).reason

    assert reason(TEXT[:3]) == reason([]) == "too short"
    assert reason([99] * 8) == "cold"
    assert reason(TEXT[:16]) == "new text"
    assert reason(TEXT[:12]) is reason(TEXT[:15]) is None
    keep(store, "", [99] * 12)
    assert reason(TEXT[:12]) == "evicted"
    keep(store, "", TEXT[:12])
    assert reason(TEXT[:12]) is None
    stats = store.stats()
    assert (stats.queries, dict(stats.misses)) == (8, {"too short": 2, "cold": 1, "new text": 1, "evicted": 1})
    assert (stats.hit_tokens, stats.queried_tokens) == (12 * 4 + 8, 3 + 0 + 8 + 16 + 12 + 15 + 12 + 12)


def test_pages_that_are_none_are_refused() -> None:
    store = in_memory()
    for start, stop, pages in ((0, 7, 2), (2, 8, 1), (8, 8, 1), (-4, 8, 1)):
        with pytest.raises(ValueError, match="no whole pages"):
            store.keep("", TEXT[:stop], start, [page_of("", TEXT)] * pages)


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_leaves_go_first_and_what_was_used_long_ago(where: str, tmp_path: Path) -> None:
    store = in_memory(9) if where == "memory" else on_disk(tmp_path, 9)
    first, second, third = (TEXT[:8] + [tail] * 8 for tail in (1, 2, 3))  # two pages shared, two each of their own
    for contents in (first, second, third):
        keep(store, "", contents)
        store.close()
        time.sleep(0.002)
    assert found(store, "", first) == 16  # eight pages in all
    time.sleep(0.002)
    keep(store, "", [9] * 8)  # two more than one
    store.close()
    assert [found(store, "", contents) for contents in (second, third, first, [9] * 8)] == [12, 16, 16, 8]


@pytest.mark.parametrize("where", ["memory", "disk"])
def test_what_is_longer_than_the_budget_keeps_its_beginning(where: str, tmp_path: Path) -> None:
    store = in_memory(5) if where == "memory" else on_disk(tmp_path, 5)
    for stop in range(4, 44, 4):
        keep(store, "", TEXT[:stop], stop - 4)
        store.close()
    assert found(store, "", TEXT) in (16, 20)
    keep(store, "", [7] * 44)
    store.close()
    assert found(store, "", [7] * 44) in (16, 20)


def test_a_page_larger_than_the_budget_is_not_kept(tmp_path: Path) -> None:
    store = on_disk(tmp_path, pages=3, memory=3)
    keep(store, "", TEXT[:8])
    store.close()
    keep(store, "b", TEXT[:4], bytes_=1000)
    store.close()
    assert found(store, "b", TEXT, bytes_=1000) == 0 and found(store, "", TEXT) == 8
    assert store.stats().unwritten == 1


def test_a_dropped_page_lives_on_for_who_reads_it() -> None:
    store = in_memory(2)
    keep(store, "", TEXT[:8])
    hit = store.fetch("", TEXT, 8)
    keep(store, "", [5] * 8)
    assert found(store, "", TEXT) == 0
    assert hit.pages == pages_of(store, "", TEXT[:8])


def test_the_disk_outlives_the_store(tmp_path: Path) -> None:
    first = on_disk(tmp_path, memory=100)
    keep(first, "ann", TEXT)
    first.close()
    second = on_disk(tmp_path, memory=100)
    assert second.stats().disk_pages == 10 and second.missing("ann", TEXT) == 40
    assert found(second, "ann", TEXT) == 40
    shutil.rmtree(tmp_path)
    assert found(second, "ann", TEXT) == 40  # now from memory, and with that on disk again
    second.close()
    assert found(on_disk(tmp_path), "ann", TEXT) == 40


def test_the_folder_may_be_deleted_at_any_time(tmp_path: Path) -> None:
    store = on_disk(tmp_path / "pages")
    keep(store, "", TEXT)
    store.close()
    shutil.rmtree(tmp_path / "pages")
    assert found(store, "", TEXT) == store.missing("", TEXT) == 0
    keep(store, "", TEXT)
    store.close()
    (tmp_path / "pages" / files(tmp_path / "pages")[3].parent.name).rename(tmp_path / "elsewhere")
    assert found(store, "", TEXT) < 40


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="file cannot be used .*; name one you may write to"):
        on_disk(tmp_path / "file")


def test_a_disk_that_fails_costs_hits_only(tmp_path: Path) -> None:
    store = on_disk(tmp_path / "pages")
    shutil.rmtree(tmp_path / "pages")
    (tmp_path / "pages").write_text("in the way")
    keep(store, "", TEXT)
    store.close()
    assert found(store, "", TEXT) == 0 and store.stats().unwritten == 10
    assert os.listdir(tmp_path) == ["pages"]


def damaged(raw: bytes) -> dict[str, bytes]:
    flipped = {f"bit {at}": raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :] for at in range(len(raw))}
    cut = {f"first {length}": raw[:length] for length in range(len(raw))}
    return flipped | cut | {"longer": raw + b"\0", "zeros": bytes(len(raw))}


def test_a_damaged_file_is_a_miss_and_goes(tmp_path: Path) -> None:
    store = on_disk(tmp_path)
    keep(store, "", TEXT[:8])
    store.close()
    second = Path(store._disk.path(list(names(MODEL, "", TEXT, 4))[1]))
    whole = second.read_bytes()
    for kind, raw in damaged(whole).items():
        second.write_bytes(raw)
        hit = store.fetch("", TEXT, 40)
        assert (hit.tokens, hit.reason) == (4, "corrupt"), kind
        assert not second.exists(), kind
    assert store.stats().misses == {"corrupt": len(damaged(whole))}
    assert store.fetch("", TEXT, 40).reason == "new text"
    keep(store, "", TEXT[:8])
    store.close()
    assert second.read_bytes() == whole


def test_a_file_of_another_page_is_damaged(tmp_path: Path) -> None:
    store = on_disk(tmp_path)
    keep(store, "", TEXT[:4])
    keep(store, "", [9] * 4)
    store.close()
    first, second = files(tmp_path)
    shutil.copy(first, second)
    assert sorted((found(store, "", TEXT), found(store, "", [9] * 4))) == [0, 4]


def test_what_was_left_half_written_goes_later_and_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / "ab").mkdir()
    old, new, foreign = (tmp_path / "ab" / name for name in (".partial-1", ".partial-2", "notes"))
    for path in (old, new, foreign):
        path.write_text("a" * 100_000)
    for path in (old, foreign):
        os.utime(path, (time.time() - ABANDONED - 1,) * 2)
    store = on_disk(tmp_path, pages=3)
    assert [path.exists() for path in (old, new, foreign)] == [False, True, True]
    keep(store, "", TEXT[:12])
    store.close()
    assert found(store, "", TEXT) == 12


def test_a_smaller_budget_holds_at_once(tmp_path: Path) -> None:
    store = on_disk(tmp_path, 10)
    keep(store, "", TEXT)
    store.close()
    assert on_disk(tmp_path, 4).stats().disk_pages == 4 == len(files(tmp_path))


def test_two_stores_on_one_folder_see_each_others_pages_and_share_the_budget(tmp_path: Path) -> None:
    budget, (ann, bob) = FILE * 32, (PrefixStore(MODEL, 0, tmp_path, FILE * 32, page=4) for _ in "ab")
    for seed in range(24):
        for store in (ann, bob):
            keep(store, "", [seed, id(store) % 97, 0, 0] * 2)
            store.close()
            assert sum(path.stat().st_size for path in files(tmp_path)) <= budget
    keep(ann, "", TEXT[:8])
    ann.close()
    assert bob.missing("", TEXT) == found(bob, "", TEXT) == 8


def test_a_full_backlog_refuses_and_can_be_read_meanwhile() -> None:
    a, b, c = names(MODEL, "", TEXT[:12], 4)
    written, backlog = [], None

    def slow(name, page) -> None:
        assert backlog.get(name) is page
        written.append((name, page))

    backlog = Backlog(slow, most=150)
    with backlog._lock:  # the writer waits
        backlog._thread = "none is started"
    assert [backlog.put(name, page_of("", name.key)) for name in (a, b, a, c)] == [True, True, True, False]
    assert backlog.get(b) == page_of("", b.key) and backlog.get(c) is None
    backlog._work()
    assert [name for name, _ in written] == [a, b] and backlog.bytes == 0 and backlog.get(a) is None
    assert backlog.put(c, page_of("", c.key))
    backlog.flush()
    assert [name for name, _ in written] == [a, b, c]


namespaces, texts = some.sampled_from(["", "ann"]), some.lists(some.integers(0, 1), max_size=11)


class StoreMachine(RuleBasedStateMachine):
    """A store in both tiers beside a plain dict of all that was ever kept: nothing else is ever found, whatever happens."""

    @initialize(memory=some.sampled_from([0, 4, 1000]), disk=some.sampled_from([None, 5, 1000]))
    def open(self, memory: int, disk: int | None) -> None:
        self.folder = Path(os.environ["FOURFOLD_HOME"]) / f"machine-{time.monotonic_ns()}"
        self.memory, self.disk = memory, disk
        self.known: dict[tuple, list[bytes]] = {}
        self.lossless = 1000 in (memory, disk)  # then everything is found until something is damaged
        self.reopen()

    def reopen(self) -> None:
        budget = (FILE * (self.disk or 0) * 8 + 6) // 7
        self.store = PrefixStore(MODEL, 60 * self.memory, None if self.disk is None else self.folder, budget, page=2)

    # What is drawn must not depend on the store: the thread that writes makes its state another from run to run.
    @rule(namespace=namespaces, text=texts, page=some.integers(0, 5))
    def keep(self, namespace: str, text: list[int], page: int) -> None:
        start = min(page, min(len(text), self.store.missing(namespace, text)) // 2) * 2
        keep(self.store, namespace, text, start)
        for stop in range(start + 2, len(text) + 1, 2):
            self.known[namespace, *text[:stop]] = page_of(namespace, text[:stop])

    @rule(namespace=namespaces, text=texts, most=some.integers(-1, 12))
    def fetch(self, namespace: str, text: list[int], most: int) -> None:
        hit = self.store.fetch(namespace, text, most)
        stops = range(2, min(most, len(text)) + 1, 2)
        there = [self.known.get((namespace, *text[:stop])) for stop in stops]
        longest = there.index(None) if None in there else len(there)
        assert hit.pages == there[: len(hit.pages)] and hit.tokens == 2 * len(hit.pages)
        assert (hit.reason is None) == (hit.tokens // 2 == len(there) > 0)
        if self.lossless:
            assert hit.tokens == 2 * longest

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.reopen()
        if self.disk is None:
            self.known.clear()
        self.lossless &= self.disk in (None, 1000)

    @rule(place=some.integers(0, 99), size=some.integers(0, FILE - 1))
    def damage(self, place: int, size: int) -> None:
        self.store.close()
        if there := files(self.folder):
            path = there[place % len(there)]
            path.write_bytes(path.read_bytes()[:size])
            self.lossless = False

    @rule()
    def delete(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.lossless = False

    @rule()
    def settle(self) -> None:
        self.store.close()
        assert sum(path.stat().st_size for path in files(self.folder)) <= FILE * (self.disk or 0)

    @invariant()
    def bounded(self) -> None:
        stats = self.store.stats()
        assert stats.memory_bytes == 60 * stats.memory_pages <= 60 * self.memory

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder, ignore_errors=True)


StoreMachine.TestCase.settings = settings(max_examples=25, stateful_step_count=25, deadline=None)
TestAgainstADict = StoreMachine.TestCase
