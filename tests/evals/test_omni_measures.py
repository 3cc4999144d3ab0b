"""What the figures of omni models are made of, against cases worked out by hand and independent definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fourfold.evals.omni import similarity
from fourfold.evals.omni.asking import other_names, worded
from fourfold.evals.omni.classifier import SIDE, Judge, Linear, classified, features, grey, judges
from fourfold.evals.omni.figures import accuracy, missing, ratio
from fourfold.evals.omni.labels import affirmed, labelled
from fourfold.evals.omni.spread import nearest, relative_spread, share_closer, spread
from fourfold.evals.omni.transcripts import audible, character_errors, edits
from fourfold.evals.statistics import wilson
from fourfold.media.motion import WAYS, region, velocity, way
from tests.compare import assert_close

WEARS = {name: other_names(name) for name in ("t-shirt/top", "shirt", "trouser", "ankle boot")}


@pytest.mark.parametrize(
    ("said", "wanted", "count"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "", 3), ("flaw", "lawn", 2), ("same", "same", 0), ("ab", "ba", 2)],
)
def test_edits(said: str, wanted: str, count: int) -> None:
    assert edits(said, wanted) == edits(wanted, said) == count


@given(st.text("ab", max_size=6), st.text("ab", max_size=6), st.text("ab", max_size=6))
def test_edits_are_a_distance(a: str, b: str, c: str) -> None:
    assert edits(a, c) <= edits(a, b) + edits(b, c) and (edits(a, b) == 0) == (a == b)
    assert abs(len(a) - len(b)) <= edits(a, b) <= max(len(a), len(b))


def test_only_what_can_be_heard_counts() -> None:
    assert audible("  Don't  STOP, naïve_you: it's 5! ") == "dont stop naive you its 5"
    assert character_errors("The cat.", "the  cat") == (0, 7)
    assert character_errors("the dog sat", "the cat sat") == (3, 11) and character_errors("", "cat") == (3, 3)


@pytest.mark.parametrize(
    ("reply", "label"),
    [
        ("T-shirt", "t-shirt/top"),
        ("A top.", "t-shirt/top"),
        ("It is a shirt", "shirt"),
        ("trousers\nankle boot", "trouser"),
        ("ankle boots!", "ankle boot"),
        ("a shirt or trousers", None),
        ("a t-shirt and a shirt", None),
        ("boot", None),
        ("", None),
        ("nightshirt", None),
    ],
)
def test_an_answer_has_to_name_one_label_alone(reply: str, label: str | None) -> None:
    assert labelled(reply, WEARS) == label


def test_yes_and_no() -> None:
    assert [affirmed(reply) for reply in ("Yes, there is.", "no", "No. Yes.", "maybe yes", "")] == [True, False, False, None, None]


def test_wordings_are_used_about_equally_often() -> None:
    counts = [[worded("abcd", str(i)) for i in range(2000)].count(letter) for letter in "abcd"]
    assert min(counts) > 420 and worded("abcd", "7") == worded("abcd", "7")


def test_a_figure_has_its_count_chance_baseline_and_interval() -> None:
    found = accuracy([True] * 8 + [False] * 2, 0.1, 0.5, "half", parts={"x": 1})
    assert found["interval"] == list(wilson(8, 10)) and (found["value"], found["count"], found["parts"]) == (0.8, 10, {"x": 1})
    assert (found["chance"], found["baseline"], found["baseline_is"]) == (0.1, 0.5, "half")
    found = ratio([(1, 4), (3, 4)], 1.0, None, "")
    assert (found["value"], found["count"], found["units"], found["interval"]) == (0.5, 8, 2, pytest.approx([0.25, 0.75]))
    assert accuracy([], 0.1, 0.1, "")["value"] is None and missing("no clips")["reason"] == "no clips"


def test_spread_is_relative_to_the_real_and_has_no_bias() -> None:
    assert spread(torch.tensor([[0.0, 0], [3, 4], [0, 0]])) == pytest.approx(10 / 3)
    generator = torch.Generator().manual_seed(1)
    real = [torch.randn(300, 8, generator=generator) for _ in range(3)]
    value, (low, high) = relative_spread([0.7 * rows[:80] for rows in real], real)
    assert low < 0.7 < high and value == pytest.approx(0.7, abs=0.03) and high - low < 0.06
    same, interval = relative_spread([rows[:1].expand(20, -1) for rows in real], real)
    assert same == 0 and interval == [0, 0]


def test_the_interval_of_a_spread_covers_it() -> None:
    hits, generator = 0, torch.Generator().manual_seed(2)
    real = torch.randn(500, 4, generator=generator)
    for _ in range(40):
        _, (low, high) = relative_spread([torch.randn(30, 4, generator=generator)], [real])
        hits += low <= 1 <= high
    assert 34 <= hits <= 40


def test_nearest_is_that_of_all_distances() -> None:
    generator = torch.Generator().manual_seed(3)
    rows, among = torch.rand(300, 7, generator=generator), torch.rand(40, 7, generator=generator)
    distance, place = nearest(rows, among)
    expected = torch.cdist(rows.double(), among.double(), compute_mode="donot_use_mm_for_euclid_dist").min(1)
    assert_close(distance, expected.values.float())
    assert (place == expected.indices).all()


def test_copies_lie_closer_and_the_like_lie_as_close() -> None:
    assert share_closer(torch.zeros(9), torch.ones(5))[0] == 1 and share_closer(torch.ones(9), torch.zeros(5))[0] == 0
    assert share_closer(torch.ones(4), torch.ones(4)) == (0.5, [0.5, 0.5])
    mine, theirs = torch.tensor([1.0, 3, 3]), torch.tensor([2.0, 3, 4])
    by_hand = np.mean([1.0 if m < t else 0.5 if m == t else 0.0 for m in mine.tolist() for t in theirs.tolist()])
    assert share_closer(mine, theirs)[0] == pytest.approx(by_hand)


def blob(x: float, y: float, side: int = 10) -> torch.Tensor:
    frame = torch.full((3, 32, 32), 190, dtype=torch.uint8)
    frame[:, round(y) : round(y) + side, round(x) : round(x) + side] = torch.tensor([20, 90, 60], dtype=torch.uint8)[:, None, None]
    return frame


@pytest.mark.parametrize("name", WAYS)
def test_the_way_of_a_blob_is_measured(name: str) -> None:
    x = 2 * (("right" in name) - ("left" in name))
    y = 2 * (("down" in name) - ("up" in name))
    clip = torch.stack([blob(11 + (k - 3.5) * x, 11 + (k - 3.5) * y) for k in range(8)])
    noise = torch.randn(clip.shape, generator=torch.Generator().manual_seed(4)) * 20
    assert velocity(clip).tolist() == pytest.approx([x, y], abs=0.1)
    assert way(clip) == way((clip + noise).clamp(0, 255).to(torch.uint8)) == name
    assert way(clip.flip(0)) != name


@pytest.mark.parametrize(
    ("x", "y", "name"), [(0, 0, "top left"), (11, 0, "top"), (22, 11, "right"), (11, 11, "middle"), (11, 22, "bottom")]
)
def test_where_a_blob_is(x: int, y: int, name: str) -> None:
    clip = torch.stack([blob(11, 11), blob(x, y)])
    assert (region(clip, 0), region(clip, -1)) == ("middle", name)


def test_what_does_not_move_has_no_way() -> None:
    assert way(blob(8, 8).expand(8, -1, -1, -1)) is None
    assert way(torch.zeros(8, 3, 32, 32, dtype=torch.uint8)) is None
    assert way(torch.stack([blob(12 - k / 2, 12 - k / 2, 8 + k) for k in range(8)])) is None  # it grows


def test_the_judge_learns_is_kept_and_is_the_same_again(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(90) % 3
    pictures = torch.rand(90, SIDE, SIDE, generator=generator) * 0.2
    for k in range(3):
        pictures[labels == k, 10 * k : 10 * k + 10] += 0.7
    first = judges(pictures, labels, 3, "first")
    for network in first:
        assert (classified(network, pictures) == labels).all()
    again = judges(pictures, labels, 3, "again")  # trained anew
    monkeypatch.setattr("fourfold.evals.omni.classifier.train", None)
    kept = judges(pictures, labels, 3, "first")
    for one, two, three in zip(first, again, kept, strict=True):
        for a, b, c in zip(one.parameters(), two.parameters(), three.parameters(), strict=True):
            assert torch.equal(a, b) and torch.equal(a, c)
    assert features(first[0], pictures).shape == (90, 64) and isinstance(first[0], Judge) and isinstance(first[1], Linear)


def test_the_judge_sees_grey_pictures_of_its_size() -> None:
    assert_close(grey(torch.full((2, 3, SIDE, SIDE), 51, dtype=torch.uint8)), torch.full((2, SIDE, SIDE), 0.2))
    with pytest.raises(ValueError, match="not \\(3, 32, 32\\)"):
        grey(torch.zeros(1, 3, 28, 28, dtype=torch.uint8))


@pytest.mark.skipif(similarity.lacking() is not None, reason=str(similarity.lacking()))
def test_captions_that_mean_the_same_are_alike() -> None:
    vectors = similarity.embedded(["a cat that smiles", "grinning cat", "aeroplane"])
    assert_close(vectors.norm(dim=1), torch.ones(3))
    near, far = (float(vectors[0] @ vectors[i]) for i in (1, 2))
    assert near > 0.5 > far
